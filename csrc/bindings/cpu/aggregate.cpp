#include "aggregate.h"

#include <torch/headeronly/core/Dispatch_v2.h>

#include <tuple>

namespace {

using strucfast::Aggregate;
using strucfast::bindings::aggregate_of;
using strucfast::bindings::data;
using strucfast::bindings::empty;
using strucfast::bindings::no_tensor;
using strucfast::bindings::OptionalTensor;
using strucfast::bindings::Partition;
using strucfast::bindings::run_aggregate;
using strucfast::bindings::run_aggregate_backward;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> aggregate(const Tensor& z, const Tensor& mean, const Tensor& logvar, int64_t weights,
                                             int64_t dataset_size, int64_t offset, std::vector<int64_t> groups) {
  const Partition partition(groups, z.size(1));
  const ScalarType dtype = z.scalar_type();
  const Tensor joint = empty({z.size(0)}, dtype);
  const Tensor marginal = empty({z.size(0), z.size(1)}, dtype);
  const Tensor grouped = empty({z.size(0), partition.groups}, dtype);
  if (z.size(0) > 0) {
    THO_DISPATCH_V2(dtype, "aggregate_log_density", AT_WRAP([&] {
      run_aggregate(aggregate_of<scalar_t>(z, mean, logvar, weights, dataset_size, offset, partition), joint, marginal,
                    grouped);
    }), ScalarType::Float, ScalarType::Double);
  }
  return {joint, marginal, grouped};
}

template <typename T>
const T* gradient(const OptionalTensor& grad, int64_t* strides) {
  if (!grad.has_value() || grad->numel() == 0) return nullptr;
  for (int64_t i = 0; i < grad->dim(); ++i) strides[i] = grad->stride(i);
  return static_cast<const T*>(grad->const_data_ptr());
}

std::tuple<Tensor, Tensor, Tensor> aggregate_backward(const OptionalTensor& grad_joint,
                                                      const OptionalTensor& grad_marginal,
                                                      const OptionalTensor& grad_grouped, const Tensor& z,
                                                      const Tensor& mean, const Tensor& logvar, Tensor joint,
                                                      Tensor marginal, Tensor grouped, int64_t weights,
                                                      int64_t dataset_size, int64_t offset, std::vector<int64_t> groups,
                                                      int64_t mask) {
  const Partition partition(groups, z.size(1));
  const ScalarType dtype = z.scalar_type();
  for (Tensor* saved : {&joint, &marginal, &grouped}) {
    if (!saved->is_contiguous()) *saved = torch::stable::contiguous(*saved);
  }
  Tensor dz = (mask & 1) != 0 ? empty({z.size(0), z.size(1)}, dtype) : no_tensor(dtype);
  Tensor dmean = (mask & 2) != 0 ? empty({mean.size(0), mean.size(1)}, dtype) : no_tensor(dtype);
  Tensor dlogvar = (mask & 4) != 0 ? empty({mean.size(0), mean.size(1)}, dtype) : no_tensor(dtype);
  THO_DISPATCH_V2(dtype, "aggregate_log_density_backward", AT_WRAP([&] {
    Aggregate<scalar_t> op = aggregate_of<scalar_t>(z, mean, logvar, weights, dataset_size, offset, partition);
    op.joint = data<scalar_t>(joint);
    op.marginal = data<scalar_t>(marginal);
    op.grouped = data<scalar_t>(grouped);
    op.grad_joint = gradient<scalar_t>(grad_joint, &op.grad_joint_stride);
    op.grad_marginal = gradient<scalar_t>(grad_marginal, op.grad_marginal_strides);
    op.grad_grouped = gradient<scalar_t>(grad_grouped, op.grad_grouped_strides);
    run_aggregate_backward(op, dz, dmean, dlogvar, mask);
  }), ScalarType::Float, ScalarType::Double);
  return {dz, dmean, dlogvar};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_aggregate_log_density_cpp", TORCH_BOX(&aggregate));
  m.impl("_aggregate_log_density_backward_cpp", TORCH_BOX(&aggregate_backward));
}
