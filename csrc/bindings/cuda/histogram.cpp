#include "cuda/histogram.cuh"

#include "common.h"

namespace strucfast::cuda {
namespace {

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

Tensor range(const Tensor& values_in) {
  const char* op = "_column_range_cuda";
  STD_TORCH_CHECK(values_in.dim() == 2 && values_in.numel() > 0, op, ": values must be a non-empty matrix");
  const Device device(values_in);
  const Tensor values = dense(values_in);
  const ScalarType type = values.scalar_type();
  const int64_t rows = values.size(0), columns = values.size(1);
  Tensor out = torch::stable::new_empty(values, {3, columns}, type);
  const Tensor workspace = torch::stable::new_empty(values, {column_range_parts(rows, columns), 3, columns}, type);
  const auto run = [&](auto element) {
    using T = decltype(element);
    check(column_range<T>(pointer<T>(values), rows, columns, pointer<T>(out), pointer<T>(workspace), device.stream()),
          op);
  };
  if (type == ScalarType::Float) {
    run(float());
  } else if (type == ScalarType::Double) {
    run(double());
  } else {
    STD_TORCH_CHECK(type == ScalarType::Long, op, ": values must be float32, float64 or int64");
    run(int64_t());
  }
  return out;
}

Tensor histogram(const Tensor& codes_in, const Tensor& edges_in, const Tensor& factors_in, const Tensor& low_in,
                 const Tensor& starts_in, int64_t values) {
  const char* op = "_joint_histogram_cuda";
  const Device device(codes_in);
  const Tensor codes = dense(codes_in), edges = dense(edges_in), factors = dense(factors_in);
  const Tensor low = dense(low_in), starts = dense(starts_in);
  STD_TORCH_CHECK(codes.dim() == 2 && edges.dim() == 2 && factors.dim() == 2 && low.dim() == 1 && starts.dim() == 1, op,
                  ": expected codes (N, D), edges (D, bins + 1), factors (N, K), low (K,), starts (K + 1,)");
  const int64_t rows = codes.size(0), columns = codes.size(1), bins = edges.size(1) - 1, num_factors = factors.size(1);
  STD_TORCH_CHECK(edges.size(0) == columns && factors.size(0) == rows && low.size(0) == num_factors &&
                      starts.size(0) == num_factors + 1,
                  op, ": sizes of codes, edges, factors, low and starts do not belong together");
  STD_TORCH_CHECK(bins >= 1 && bins < (1ll << 31) && values >= 0 && values < (1ll << 31), op,
                  ": expected 1 to 2^31 - 1 bins and fewer than 2^31 factor values");
  STD_TORCH_CHECK(factors.scalar_type() == ScalarType::Long && low.scalar_type() == ScalarType::Long &&
                      starts.scalar_type() == ScalarType::Long,
                  op, ": factors, low and starts must be int64");
  STD_TORCH_CHECK(edges.scalar_type() == codes.scalar_type(), op, ": edges must have the dtype of codes");
  Tensor counts = torch::stable::new_empty(codes, {columns, bins, values}, ScalarType::Long);
  torch::stable::zero_(counts);
  const auto run = [&](auto element) {
    using T = decltype(element);
    const HistogramJob<T> job{rows,
                              columns,
                              num_factors,
                              bins,
                              values,
                              pointer<T>(codes),
                              pointer<T>(edges),
                              pointer<int64_t>(factors),
                              pointer<int64_t>(low),
                              pointer<int64_t>(starts),
                              pointer<int64_t>(counts)};
    check(joint_histogram<T>(job, device.stream()), op);
  };
  if (codes.scalar_type() == ScalarType::Float) {
    run(float());
  } else {
    STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Double, op, ": codes must be float32 or float64");
    run(double());
  }
  return counts;
}

}  // namespace
}  // namespace strucfast::cuda

STABLE_TORCH_LIBRARY_IMPL(strucfast, STRUCFAST_CUDA_KEY, m) {
  m.impl("_column_range_cuda", TORCH_BOX(&strucfast::cuda::range));
  m.impl("_joint_histogram_cuda", TORCH_BOX(&strucfast::cuda::histogram));
}
