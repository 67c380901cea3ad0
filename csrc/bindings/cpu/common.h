#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <algorithm>
#include <array>
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

// Elements that are worth a thread: a second one breaks even at 8,000 (GroupNorm), 16,000 (AdaIN, Lp-nested) to 32,000
// (modulate, 0.1 ns each). A waiting thread costs 1 us, but milliseconds where other work holds its core.
constexpr int64_t kSerialElements = 16384;

// Public functions take no more, so that sizes and strides need no memory of their own.
constexpr int64_t kMaxDims = 5;

struct Layout {
  std::array<int64_t, kMaxDims> sizes, strides;
  int64_t dims = 0, samples = 0, channels = 0, pixels = 0;
  bool channels_last = false;  // (N, S, C) with more than one pixel
};

inline void set_dense_strides(const int64_t* sizes, int64_t dims, bool channels_last, int64_t* strides) {
  int64_t step = 1;
  if (channels_last) {
    strides[1] = 1;
    step = std::max<int64_t>(sizes[1], 1);
  }
  for (int64_t i = dims; i-- > 0;) {
    if (channels_last && i == 1) continue;
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
}

// Strides of dimensions of one element mean nothing; an empty tensor has every layout.
inline bool has_strides(const Tensor& t, const int64_t* strides) {
  const auto sizes = t.sizes(), own = t.strides();
  bool same = true;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return true;
    same = same && (sizes[i] == 1 || own[i] == strides[i]);
  }
  return same;
}

// The layout in which x is read: its own where that is native, else contiguous.
inline Layout native_layout(const Tensor& x) {
  Layout layout;
  const auto sizes = x.sizes();
  layout.dims = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(layout.dims >= 2 && layout.dims <= kMaxDims, "strucfast: x must have 2 to 5 dimensions");
  std::copy_n(sizes.data(), layout.dims, layout.sizes.data());
  set_dense_strides(sizes.data(), layout.dims, false, layout.strides.data());
  if (layout.dims > 2 && !has_strides(x, layout.strides.data())) {
    int64_t strides[kMaxDims];
    set_dense_strides(sizes.data(), layout.dims, true, strides);
    layout.channels_last = has_strides(x, strides);
    if (layout.channels_last) std::copy_n(strides, layout.dims, layout.strides.data());
  }
  layout.samples = sizes[0];
  layout.channels = sizes[1];
  layout.pixels = 1;
  for (int64_t i = 2; i < layout.dims; ++i) layout.pixels *= sizes[i];
  return layout;
}

inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dims, ScalarType dtype) {
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides, code, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  const int64_t dims = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(dims <= kMaxDims, "strucfast: an output has at most 5 dimensions");
  int64_t strides[kMaxDims];
  set_dense_strides(sizes.data(), dims, false, strides);
  return empty_strided(sizes.data(), strides, dims, dtype);
}

// What an op returns for an output that was not asked for.
inline Tensor no_tensor(ScalarType dtype) { return empty({0}, dtype); }

inline Tensor empty_as(const Layout& layout, ScalarType dtype) {
  return empty_strided(layout.sizes.data(), layout.strides.data(), layout.dims, dtype);
}

// t itself if it lies as the layout says, else a copy that does.
inline Tensor in_layout(const Tensor& t, const Layout& layout) {
  if (has_strides(t, layout.strides.data())) return t;
  Tensor copy = empty_as(layout, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

// torch::stable::contiguous finds its operator by name at every call, which costs as much as a small kernel.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

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
    const size_t last = tensor.sizes().size() - 1;
    if (tensor.sizes()[last] != 1 && tensor.strides()[last] != 1) tensor = torch::stable::contiguous(tensor);
    if (last == 1) p.stride = tensor.strides()[0];
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
inline int64_t channel_blocks(int64_t samples, int64_t channels, int64_t step) {
  const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t least = (16 + step - 1) / step * step;
  const int64_t most = std::max<int64_t>(1, channels / least);
  return std::clamp<int64_t>(wanted / std::max<int64_t>(1, samples), 1, most);
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
