#pragma once
#include <pybind11/pybind11.h>

namespace strucfast {

void bind_render(pybind11::module_& m);

}  // namespace strucfast
