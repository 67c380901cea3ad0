#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../../cpu/tile.h"

// What the CPU bindings share: layouts, allocation, parameters, threads. Shapes and dtypes were checked in Python.
namespace strucfast::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A starting thread costs some microseconds; below this many elements a kernel is faster alone.
constexpr int64_t kSerialElements = 16384;

struct Layout {
  std::vector<int64_t> sizes, strides;
  int64_t samples = 0, channels = 0, pixels = 0;
  bool channels_last = false;  // (N, S, C) with more than one pixel
};

inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  if (channels_last) {
    strides[1] = 1;
    step = std::max<int64_t>(sizes[1], 1);
  }
  for (size_t i = sizes.size(); i-- > 0;) {
    if (channels_last && i == 1) continue;
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

// Strides of dimensions of one element mean nothing; an empty tensor has every layout.
inline bool has_strides(const Tensor& t, const std::vector<int64_t>& strides) {
  if (t.numel() == 0) return true;
  for (size_t i = 0; i < strides.size(); ++i) {
    if (t.size(i) != 1 && t.stride(i) != strides[i]) return false;
  }
  return true;
}

// The layout in which x is read: its own where that is native, else contiguous.
inline Layout native_layout(const Tensor& x) {
  Layout layout;
  for (int64_t i = 0; i < x.dim(); ++i) layout.sizes.push_back(x.size(i));
  layout.strides = dense_strides(layout.sizes, false);
  if (x.dim() > 2 && !has_strides(x, layout.strides)) {
    auto strides = dense_strides(layout.sizes, true);
    layout.channels_last = has_strides(x, strides);
    if (layout.channels_last) layout.strides = std::move(strides);
  }
  layout.samples = layout.sizes[0];
  layout.channels = layout.sizes[1];
  layout.pixels = 1;
  for (size_t i = 2; i < layout.sizes.size(); ++i) layout.pixels *= layout.sizes[i];
  return layout;
}

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType dtype) {
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), code,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return empty_strided(sizes, dense_strides(sizes, false), dtype);
}

// What an op returns for an output that was not asked for.
inline Tensor no_tensor(ScalarType dtype) { return empty({0}, dtype); }

inline Tensor empty_as(const Layout& layout, ScalarType dtype) {
  return empty_strided(layout.sizes, layout.strides, dtype);
}

// t itself if it lies as the layout says, else a copy that does.
inline Tensor in_layout(const Tensor& t, const Layout& layout) {
  if (has_strides(t, layout.strides)) return t;
  Tensor copy = empty_as(layout, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

inline ScalarType compute_type(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

inline DType kernel_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, "strucfast: x must be float32, float64, bfloat16 or float16");
  }
}

inline bool is_wide(ScalarType dtype, ScalarType x_dtype) {
  STD_TORCH_CHECK(dtype == x_dtype || dtype == compute_type(x_dtype),
                  "strucfast: a parameter must have the dtype of x or its compute type");
  return dtype == compute_type(x_dtype);
}

// Kernels read per-channel values with unit stride from any sample to the next, so a slice of a bank of scales
// (N, d, C)[:, i] needs no copy. A copy that is needed replaces *t and so lives as long as the caller's tensor.
inline Parameter parameter(OptionalTensor* t, const Layout& layout, ScalarType x_dtype) {
  Parameter p;
  if (!t->has_value()) return p;
  Tensor& tensor = t->value();
  p.wide = is_wide(tensor.scalar_type(), x_dtype);
  p.per_pixel = tensor.dim() > 2;
  if (p.per_pixel) {
    tensor = in_layout(tensor, layout);
  } else {
    const int64_t last = tensor.dim() - 1;
    if (tensor.size(last) != 1 && tensor.stride(last) != 1) tensor = torch::stable::contiguous(tensor);
    if (tensor.dim() == 2) p.stride = tensor.stride(0);
  }
  p.data = tensor.const_data_ptr();
  return p;
}

// Allocates the gradient of a parameter of the given dtype, per pixel or (N, C).
inline Tensor parameter_gradient(bool wanted, bool per_pixel, ScalarType dtype, const Layout& layout,
                                 ScalarType x_dtype, Gradient* gradient) {
  if (!wanted) return no_tensor(dtype);
  Tensor t = per_pixel ? empty_as(layout, dtype) : empty({layout.samples, layout.channels}, dtype);
  *gradient = {t.mutable_data_ptr(), is_wide(dtype, x_dtype)};
  return t;
}

// Enough units for the threads: few samples are cut into blocks of whole `step`s of channels, of 16 channels or more.
inline int64_t channel_blocks(const Layout& layout, int64_t step) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t least = (16 + step - 1) / step * step;
  const int64_t most = std::max<int64_t>(1, layout.channels / least);
  return std::clamp<int64_t>(wanted / std::max<int64_t>(1, layout.samples), 1, most);
}

template <typename F>
void parallel_units(int64_t units, int64_t elements, const F& f) {
  if (units == 0) return;
  const int64_t each = std::max<int64_t>(1, elements / units);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, kSerialElements / each), f);
}

// How many scratch buffers, and so threads: a thread is worth starting for `work_per_thread` units of work.
inline int64_t num_slots(int64_t units, int64_t work, int64_t work_per_thread) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  return std::max<int64_t>(1, std::min({threads, units, work / work_per_thread}));
}

// Each slot has its own scratch and takes the next `step` units whenever it is free: on a busy machine a thread that
// lost its core holds the others up by one step at most. Which slot ran a unit does not change its result.
template <typename T, typename F>
void for_ranges(int64_t units, int64_t step, int64_t slots, T* scratch, int64_t scratch_size, const F& run) {
  if (slots == 1) return run(int64_t{0}, units, scratch);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t unit = next.fetch_add(step); unit < units; unit = next.fetch_add(step)) {
        run(unit, std::min(unit + step, units), scratch + slot * scratch_size);
      }
    }
  });
}

}  // namespace strucfast::bindings
