#include "../../cpu/pairwise.h"

#include <torch/headeronly/core/Dispatch_v2.h>

#include <tuple>

#include "common.h"

namespace {

using strucfast::Bandwidth;
using strucfast::PairKernel;
using strucfast::bindings::empty;
using strucfast::bindings::no_tensor;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Multiplications that are worth a thread: 7 us (MMD) to 38 us (backward of HSIC); a second one breaks even at a half.
constexpr int64_t kWorkPerThread = 1 << 19;

PairKernel kernel_of(int64_t code) { return code == 0 ? PairKernel::kRbf : PairKernel::kImq; }

template <typename T>
std::vector<Bandwidth<T>> bandwidths_of(int64_t kernel, const std::vector<double>& values) {
  std::vector<Bandwidth<T>> found;
  for (const double b : values) found.push_back(strucfast::bandwidth<T>(kernel_of(kernel), b));
  return found;
}

// (N, D) of any strides into columns [first, first + N) of a (D, stride) array.
template <typename T>
void transpose_into(const Tensor& x, T* to, int64_t stride, int64_t first) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const int64_t size = x.size(0), dims = x.size(1), row = x.stride(0), column = x.stride(1);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t d = 0; d < dims; ++d) to[d * stride + first + i] = from[i * row + d * column];
  }
}

template <typename F>
void parallel_pairs(int64_t units, int64_t work, const F& f) {
  if (units == 0) return;
  const int64_t each = std::max<int64_t>(1, work / units);
  torch::stable::parallel_for(0, units, std::max<int64_t>(1, kWorkPerThread / each), f);
}

// Multiplications per pair: about three for each coordinate, and an exponential or a division for each bandwidth.
int64_t work_of(int64_t points, int64_t dims, size_t bandwidths) {
  return points * points / 2 * (3 * dims + 10 * static_cast<int64_t>(bandwidths));
}

template <typename T>
void run_mmd(const Tensor& x, const Tensor& y, int64_t kernel, const std::vector<double>& widths, bool unbiased,
             int64_t save, bool dimwise, const Tensor& value, const Tensor& slope_x, const Tensor& slope_y) {
  const int64_t coordinates = x.size(1), points = x.size(0) + y.size(0);
  const std::vector<Bandwidth<T>> bandwidths = bandwidths_of<T>(kernel, widths);
  strucfast::Mmd<T> m{};
  m.slices = dimwise ? coordinates : 1;
  m.dims = dimwise ? 1 : coordinates;
  m.points = points;
  m.first = x.size(0);
  m.unbiased = unbiased;
  m.slope_first = (save & 1) != 0;
  m.slope_second = (save & 2) != 0;
  m.kernel = kernel_of(kernel);
  m.bandwidths = bandwidths.data();
  m.num_bandwidths = static_cast<int64_t>(bandwidths.size());
  const int64_t memory_size = save != 0 ? m.units() * strucfast::mmd_memory(m) : 0;
  const int64_t stride = strucfast::pairwise_stride(points);
  const Tensor memory = empty({coordinates * stride + memory_size}, x.scalar_type());
  const Tensor sums = empty({m.units()}, ScalarType::Double);
  T* z = static_cast<T*>(memory.mutable_data_ptr());
  transpose_into(x, z, stride, 0);
  transpose_into(y, z, stride, m.first);
  m.z = z;
  m.sums = static_cast<double*>(sums.mutable_data_ptr());
  m.memory = save != 0 ? z + coordinates * stride : nullptr;
  parallel_pairs(m.units(), m.slices * work_of(points, m.dims, widths.size()),
                 [&](int64_t begin, int64_t end) { strucfast::mmd_pairs(m, begin, end); });
  strucfast::mmd_finish(m, static_cast<T*>(value.mutable_data_ptr()), static_cast<T*>(slope_x.mutable_data_ptr()),
                        static_cast<T*>(slope_y.mutable_data_ptr()));
}

template <bool kDimwise>
std::tuple<Tensor, Tensor, Tensor> mmd(const Tensor& x, const Tensor& y, int64_t kernel,
                                       const std::vector<double>& bandwidth, bool unbiased, int64_t save) {
  const ScalarType dtype = x.scalar_type();
  const Tensor value = kDimwise ? empty({x.size(1)}, dtype) : empty({}, dtype);
  const Tensor slope_x = (save & 1) != 0 ? empty({x.size(0), x.size(1)}, dtype) : no_tensor(dtype);
  const Tensor slope_y = (save & 2) != 0 ? empty({y.size(0), y.size(1)}, dtype) : no_tensor(dtype);
  THO_DISPATCH_V2(dtype, "mmd", AT_WRAP([&] {
    run_mmd<scalar_t>(x, y, kernel, bandwidth, unbiased, save, kDimwise, value, slope_x, slope_y);
  }), ScalarType::Float, ScalarType::Double);
  return {value, slope_x, slope_y};
}

// grad () or (D) times rows of D.
template <typename T>
Tensor scaled(const Tensor& grad, const Tensor& slope_in) {
  const Tensor slope = slope_in.is_contiguous() ? slope_in : torch::stable::contiguous(slope_in);
  const int64_t size = slope.size(0), dims = slope.size(1), stride = grad.dim() == 0 ? 0 : grad.stride(0);
  const Tensor result = empty({size, dims}, slope.scalar_type());
  const T* g = static_cast<const T*>(grad.const_data_ptr());
  const T* from = static_cast<const T*>(slope.const_data_ptr());
  T* to = static_cast<T*>(result.mutable_data_ptr());
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t d = 0; d < dims; ++d) to[i * dims + d] = g[d * stride] * from[i * dims + d];
  }
  return result;
}

std::tuple<Tensor, Tensor> mmd_backward(const Tensor& grad, const Tensor& slope_x, const Tensor& slope_y,
                                        int64_t mask) {
  Tensor dx = no_tensor(grad.scalar_type()), dy = no_tensor(grad.scalar_type());
  THO_DISPATCH_V2(grad.scalar_type(), "mmd_backward", AT_WRAP([&] {
    if ((mask & 1) != 0) dx = scaled<scalar_t>(grad, slope_x);
    if ((mask & 2) != 0) dy = scaled<scalar_t>(grad, slope_y);
  }), ScalarType::Float, ScalarType::Double);
  return {dx, dy};
}

template <typename T>
strucfast::Hsic<T> hsic_problem(const Tensor& x, const Tensor& y, int64_t kernel, bool unbiased,
                                const std::vector<Bandwidth<T>>& bandwidths_x,
                                const std::vector<Bandwidth<T>>& bandwidths_y, T* z) {
  strucfast::Hsic<T> h{};
  h.points = x.size(0);
  h.unbiased = unbiased;
  h.kernel = kernel_of(kernel);
  const int64_t stride = strucfast::pairwise_stride(h.points);
  T* const z_y = z + stride * x.size(1);
  h.x = {x.size(1), bandwidths_x.data(), static_cast<int64_t>(bandwidths_x.size()), z, nullptr};
  h.y = {y.size(1), bandwidths_y.data(), static_cast<int64_t>(bandwidths_y.size()), z_y, nullptr};
  transpose_into(x, z, stride, 0);
  transpose_into(y, z_y, stride, 0);
  return h;
}

template <typename T>
void run_hsic(const Tensor& x, const Tensor& y, int64_t kernel, const std::vector<double>& widths_x,
              const std::vector<double>& widths_y, bool unbiased, const Tensor& value, const Tensor& centre_x,
              const Tensor& centre_y) {
  const std::vector<Bandwidth<T>> bandwidths_x = bandwidths_of<T>(kernel, widths_x);
  const std::vector<Bandwidth<T>> bandwidths_y = bandwidths_of<T>(kernel, widths_y);
  const int64_t dims = x.size(1) + y.size(1);
  const Tensor z = empty({dims * strucfast::pairwise_stride(x.size(0))}, x.scalar_type());
  strucfast::Hsic<T> h =
      hsic_problem(x, y, kernel, unbiased, bandwidths_x, bandwidths_y, static_cast<T*>(z.mutable_data_ptr()));
  const Tensor sums = empty({h.units() * strucfast::hsic_sums(h)}, ScalarType::Double);
  h.sums = static_cast<double*>(sums.mutable_data_ptr());
  parallel_pairs(h.units(), work_of(h.points, dims, widths_x.size() + widths_y.size()),
                 [&](int64_t begin, int64_t end) { strucfast::hsic_pairs(h, begin, end); });
  strucfast::hsic_finish(h, static_cast<T*>(value.mutable_data_ptr()), static_cast<T*>(centre_x.mutable_data_ptr()),
                         static_cast<T*>(centre_y.mutable_data_ptr()));
}

std::tuple<Tensor, Tensor, Tensor> hsic(const Tensor& x, const Tensor& y, int64_t kernel,
                                        const std::vector<double>& bandwidth_x, const std::vector<double>& bandwidth_y,
                                        bool unbiased) {
  const ScalarType dtype = x.scalar_type();
  const Tensor value = empty({}, dtype), centre_x = empty({x.size(0)}, dtype), centre_y = empty({x.size(0)}, dtype);
  THO_DISPATCH_V2(dtype, "hsic", AT_WRAP([&] {
    run_hsic<scalar_t>(x, y, kernel, bandwidth_x, bandwidth_y, unbiased, value, centre_x, centre_y);
  }), ScalarType::Float, ScalarType::Double);
  return {value, centre_x, centre_y};
}

template <typename T>
void run_hsic_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& centre_x,
                       const Tensor& centre_y, int64_t kernel, const std::vector<double>& widths_x,
                       const std::vector<double>& widths_y, bool unbiased, int64_t mask, const Tensor& dx,
                       const Tensor& dy) {
  const std::vector<Bandwidth<T>> bandwidths_x = bandwidths_of<T>(kernel, widths_x);
  const std::vector<Bandwidth<T>> bandwidths_y = bandwidths_of<T>(kernel, widths_y);
  const int64_t dims = x.size(1) + y.size(1);
  const Tensor z = empty({dims * strucfast::pairwise_stride(x.size(0))}, x.scalar_type());
  strucfast::Hsic<T> h =
      hsic_problem(x, y, kernel, unbiased, bandwidths_x, bandwidths_y, static_cast<T*>(z.mutable_data_ptr()));
  h.x.centre = static_cast<const T*>(centre_x.const_data_ptr());
  h.y.centre = static_cast<const T*>(centre_y.const_data_ptr());
  h.slope_x = (mask & 1) != 0;
  h.slope_y = (mask & 2) != 0;
  const Tensor memory = empty({h.units() * strucfast::hsic_memory(h)}, x.scalar_type());
  h.memory = static_cast<T*>(memory.mutable_data_ptr());
  parallel_pairs(h.units(), work_of(h.points, dims, widths_x.size() + widths_y.size()),
                 [&](int64_t begin, int64_t end) { strucfast::hsic_backward_pairs(h, begin, end); });
  strucfast::hsic_backward_finish(h, *static_cast<const T*>(grad.const_data_ptr()),
                                  static_cast<T*>(dx.mutable_data_ptr()), static_cast<T*>(dy.mutable_data_ptr()));
}

std::tuple<Tensor, Tensor> hsic_backward(const Tensor& grad, const Tensor& x, const Tensor& y, Tensor centre_x,
                                         Tensor centre_y, int64_t kernel, const std::vector<double>& bandwidth_x,
                                         const std::vector<double>& bandwidth_y, bool unbiased, int64_t mask) {
  const ScalarType dtype = x.scalar_type();
  if (!centre_x.is_contiguous()) centre_x = torch::stable::contiguous(centre_x);
  if (!centre_y.is_contiguous()) centre_y = torch::stable::contiguous(centre_y);
  const Tensor dx = (mask & 1) != 0 ? empty({x.size(0), x.size(1)}, dtype) : no_tensor(dtype);
  const Tensor dy = (mask & 2) != 0 ? empty({y.size(0), y.size(1)}, dtype) : no_tensor(dtype);
  if ((mask & 3) != 0) {
    THO_DISPATCH_V2(dtype, "hsic_backward", AT_WRAP([&] {
      run_hsic_backward<scalar_t>(grad, x, y, centre_x, centre_y, kernel, bandwidth_x, bandwidth_y, unbiased, mask, dx,
                                  dy);
    }), ScalarType::Float, ScalarType::Double);
  }
  return {dx, dy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_mmd_cpp", TORCH_BOX(&mmd<false>));
  m.impl("_mmd_backward_cpp", TORCH_BOX(&mmd_backward));
  m.impl("_mmd_dimwise_cpp", TORCH_BOX(&mmd<true>));
  m.impl("_mmd_dimwise_backward_cpp", TORCH_BOX(&mmd_backward));
  m.impl("_hsic_cpp", TORCH_BOX(&hsic));
  m.impl("_hsic_backward_cpp", TORCH_BOX(&hsic_backward));
}
