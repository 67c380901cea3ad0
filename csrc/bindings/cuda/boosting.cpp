#include "cuda/boosting.cuh"

#include <optional>
#include <tuple>

#include "common.h"

namespace strucfast::cuda {
namespace {

Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

void check_matrix(const char* name, const Tensor& tensor, int64_t rows, int64_t columns, ScalarType type) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns &&
                      tensor.scalar_type() == type,
                  "_boost_cuda: ", name, ": expected ", type == ScalarType::Float ? "float32" : "int32", " (", rows, ", ",
                  columns, ")");
}

// Values of order, ranks, labels and first are not looked at: that would wait for the GPU.
std::tuple<Tensor, Tensor, Tensor, Tensor> boost_all(const Tensor& order_in, const Tensor& ranks_in,
                                                     const Tensor& low_in, const Tensor& high_in,
                                                     const Tensor& raw_in, const Tensor& test_raw_in,
                                                     const Tensor& factor_in, const std::optional<Tensor>& labels_in,
                                                     const std::optional<Tensor>& first_in,
                                                     const std::optional<Tensor>& wanted_in, const Tensor& test_in,
                                                     int64_t rounds, int64_t seed) {
  const char* op = "_boost_cuda";
  STD_TORCH_CHECK(order_in.dim() == 2 && raw_in.dim() == 2 && test_in.dim() == 2, op,
                  ": expected order (F, N), raw (W, N) and test_values (F, T)");
  const int64_t features = order_in.size(0), rows = order_in.size(1), outputs = raw_in.size(0);
  const int64_t test_rows = test_in.size(1);
  STD_TORCH_CHECK(features >= 1 && features <= kMostFeatures && rows >= 1 && rows <= (1 << 24) && rounds >= 0, op,
                  ": expected 1 to ", kMostFeatures, " features and 1 to 2^24 rows");
  STD_TORCH_CHECK(labels_in.has_value() == first_in.has_value() && labels_in.has_value() != wanted_in.has_value(), op,
                  ": labels and first, or wanted: expected one of the two");
  check_matrix("order", order_in, features, rows, ScalarType::Int);
  check_matrix("ranks", ranks_in, features, rows, ScalarType::Int);
  check_matrix("low", low_in, features, rows, ScalarType::Float);
  check_matrix("high", high_in, features, rows, ScalarType::Float);
  check_matrix("raw", raw_in, outputs, rows, ScalarType::Float);
  check_matrix("test_raw", test_raw_in, outputs, test_rows, ScalarType::Float);
  check_matrix("test_values", test_in, features, test_rows, ScalarType::Float);
  STD_TORCH_CHECK(factor_in.dim() == 1 && factor_in.size(0) == outputs && factor_in.scalar_type() == ScalarType::Float,
                  op, ": factor: expected float32 (", outputs, ",)");
  const Device device(order_in);
  const Tensor order = dense(order_in), ranks = dense(ranks_in), low = dense(low_in), high = dense(high_in);
  const Tensor factor = dense(factor_in), test_values = dense(test_in);
  Tensor raw = torch::stable::new_empty(raw_in, {outputs, rows});
  Tensor test_raw = torch::stable::new_empty(raw_in, {outputs, test_rows});
  torch::stable::copy_(raw, raw_in);
  torch::stable::copy_(test_raw, test_raw_in);
  const Tensor residual = torch::stable::new_empty(raw_in, {outputs, rows});
  const Tensor node = torch::stable::new_empty(raw_in, {outputs, rows}, ScalarType::Byte);
  Tensor gains = torch::stable::new_empty(raw_in, {rounds, outputs, kBoostInner});
  Tensor chosen = torch::stable::new_empty(raw_in, {rounds, outputs, kBoostInner}, ScalarType::Int);
  BoostingJob job{};
  job.rows = static_cast<int>(rows);
  job.features = static_cast<int>(features);
  job.outputs = static_cast<int>(outputs);
  job.order = pointer<int32_t>(order);
  job.ranks = pointer<int32_t>(ranks);
  job.low = pointer<float>(low);
  job.high = pointer<float>(high);
  std::optional<Tensor> labels, first, wanted;
  if (labels_in.has_value()) {
    STD_TORCH_CHECK(first_in->dim() == 1 && first_in->size(0) >= 1 && first_in->scalar_type() == ScalarType::Int, op,
                    ": first: expected int32 (targets + 1,)");
    check_matrix("labels", *labels_in, first_in->size(0) - 1, rows, ScalarType::Int);
    labels = dense(*labels_in);
    first = dense(*first_in);
    job.targets = static_cast<int>(first->size(0) - 1);
    job.labels = pointer<int32_t>(*labels);
    job.first = pointer<int32_t>(*first);
  } else {
    check_matrix("wanted", *wanted_in, outputs, rows, ScalarType::Float);
    wanted = dense(*wanted_in);
    job.targets = job.outputs;
    job.wanted = pointer<float>(*wanted);
  }
  job.factor = pointer<float>(factor);
  job.seed = static_cast<uint64_t>(seed);
  job.test_rows = test_rows;
  job.test_values = pointer<float>(test_values);
  job.raw = pointer<float>(raw);
  job.test_raw = pointer<float>(test_raw);
  job.residual = pointer<float>(residual);
  job.node = pointer<uint8_t>(node);
  job.gains = pointer<float>(gains);
  job.chosen = pointer<int32_t>(chosen);
  check(boost(job, rounds, device.stream()), op);
  return {gains, chosen, raw, test_raw};
}

}  // namespace
}  // namespace strucfast::cuda

STABLE_TORCH_LIBRARY_IMPL(strucfast, STRUCFAST_CUDA_KEY, m) {
  m.impl("_boost_cuda", TORCH_BOX(&strucfast::cuda::boost_all));
}
