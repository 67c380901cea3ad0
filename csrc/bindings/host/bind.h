#pragma once
#include <pybind11/pybind11.h>

namespace strucfast {

void bind_render(pybind11::module_& m);
void bind_histogram(pybind11::module_& m);
void bind_boosting(pybind11::module_& m);

}  // namespace strucfast
