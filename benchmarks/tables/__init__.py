"""What benchmarks/make_tables.py is made of: results read and checked, Markdown and plots written. Stdlib only."""
