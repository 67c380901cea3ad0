#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

namespace strucfast {

namespace py = pybind11;

// C-contiguous arrays of exactly this dtype; nothing is converted or copied behind the caller's back.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

inline std::string shape_text(const py::array& array) {
  std::string text = "(";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
    text += (axis ? ", " : "") + std::to_string(array.shape(axis));
  return text + ")";
}

// Throws ValueError unless the shape is `expected`; -1 stands for any size.
inline void check_shape(const char* name, const py::array& array, std::initializer_list<int64_t> expected) {
  bool good = array.ndim() == static_cast<py::ssize_t>(expected.size());
  std::string text;
  py::ssize_t axis = 0;
  for (const int64_t size : expected) {
    good = good && (size < 0 || array.shape(axis) == size);
    text += (axis++ ? ", " : "") + (size < 0 ? std::string("*") : std::to_string(size));
  }
  if (!good) throw py::value_error(std::string(name) + ": expected shape (" + text + "), got " + shape_text(array));
}

// Throws ValueError unless every index lies in [0, limit).
inline void check_indices(const Array<int64_t>& indices, int64_t limit) {
  check_shape("indices", indices, {-1});
  const int64_t* data = indices.data();
  for (py::ssize_t i = 0; i < indices.shape(0); ++i)
    if (data[i] < 0 || data[i] >= limit)
      throw py::value_error("indices: expected values in [0, " + std::to_string(limit) + "), got " +
                            std::to_string(data[i]) + " at position " + std::to_string(i));
}

}  // namespace strucfast
