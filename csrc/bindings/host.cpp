#include "host/bind.h"
#include "host/threads.h"

// strucfast._host: what works on plain numpy arrays and is not differentiable. No torch; kernels release the GIL.
PYBIND11_MODULE(_host, m) {
  m.doc() = "Native renderers and histogram kernels of strucfast (numpy in, numpy out).";
  m.def("default_threads", &strucfast::default_threads, "Threads a kernel uses unless told otherwise.");
  strucfast::bind_render(m);
  strucfast::bind_histogram(m);
  strucfast::bind_boosting(m);
}
