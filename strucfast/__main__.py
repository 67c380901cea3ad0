"""``python -m strucfast``."""

import sys

from .cli import main

sys.exit(main())
