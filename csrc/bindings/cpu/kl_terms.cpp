#include "../../cpu/kl_terms.h"

#include <torch/headeronly/core/Dispatch_v2.h>

#include <tuple>

#include "aggregate.h"

namespace {

using strucfast::Aggregate;
using strucfast::OwnPosteriors;
using strucfast::OwnSums;
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

using Terms = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
OwnPosteriors<T> own_posteriors(const Aggregate<T>& op) {
  OwnPosteriors<T> own{op.samples, op.dims, op.z, op.mean, op.logvar, {}, {}, {}};
  own.mean += op.offset * op.mean_strides[0];
  own.logvar += op.offset * op.logvar_strides[0];
  for (int i = 0; i < 2; ++i) {
    own.z_strides[i] = op.z_strides[i];
    own.mean_strides[i] = op.mean_strides[i];
    own.logvar_strides[i] = op.logvar_strides[i];
  }
  return own;
}

template <typename T>
void write_terms(const Aggregate<T>& op, const Tensor& joint, const Tensor& marginal, const Tensor& grouped,
                 bool standard_normal, const Tensor* terms) {
  run_aggregate(op, joint, marginal, grouped);
  const OwnSums own = strucfast::own_sums(own_posteriors(op));
  const double a = strucfast::sum_of(data<T>(joint), op.samples);
  const double b = strucfast::sum_of(data<T>(marginal), op.samples * op.dims);
  // Without groups each dim is a group of its own.
  const double e = op.groups > 0 ? strucfast::sum_of(data<T>(grouped), op.samples * op.groups) : b;
  const double within = op.groups > 0 ? e - b : 0.0;
  const double sums[] = {own.posterior - a, a - b, standard_normal ? b - own.prior : b, a - e, within};
  for (int i = 0; i < 5; ++i) *data<T>(terms[i]) = static_cast<T>(sums[i] / static_cast<double>(op.samples));
}

Terms kl_terms(const Tensor& z, const Tensor& mean, const Tensor& logvar, int64_t weights, int64_t dataset_size,
               int64_t offset, std::vector<int64_t> groups, bool standard_normal) {
  const Partition partition(groups, z.size(1));
  const ScalarType dtype = z.scalar_type();
  const Tensor joint = empty({z.size(0)}, dtype), marginal = empty({z.size(0), z.size(1)}, dtype);
  const Tensor grouped = empty({z.size(0), partition.groups}, dtype);
  const Tensor terms[] = {empty({}, dtype), empty({}, dtype), empty({}, dtype), empty({}, dtype), empty({}, dtype)};
  THO_DISPATCH_V2(dtype, "kl_terms", AT_WRAP([&] {
    write_terms(aggregate_of<scalar_t>(z, mean, logvar, weights, dataset_size, offset, partition), joint, marginal,
                grouped, standard_normal, terms);
  }), ScalarType::Float, ScalarType::Double);
  return {terms[0], terms[1], terms[2], terms[3], terms[4], joint, marginal, grouped};
}

template <typename T>
double scalar(const OptionalTensor& t) {
  return t.has_value() ? static_cast<double>(*static_cast<const T*>(t->const_data_ptr())) : 0.0;
}

std::tuple<Tensor, Tensor, Tensor> kl_terms_backward(
    const OptionalTensor& grad_index_code_mi, const OptionalTensor& grad_total_correlation,
    const OptionalTensor& grad_dimwise_kl, const OptionalTensor& grad_between, const OptionalTensor& grad_within,
    const Tensor& z, const Tensor& mean, const Tensor& logvar, Tensor joint, Tensor marginal, Tensor grouped,
    int64_t weights, int64_t dataset_size, int64_t offset, std::vector<int64_t> groups,
    bool standard_normal, int64_t mask) {
  const Partition partition(groups, z.size(1));
  const ScalarType dtype = z.scalar_type();
  for (Tensor* saved : {&joint, &marginal, &grouped}) {
    if (!saved->is_contiguous()) *saved = torch::stable::contiguous(*saved);
  }
  Tensor dz = (mask & 1) != 0 ? empty({z.size(0), z.size(1)}, dtype) : no_tensor(dtype);
  Tensor dmean = (mask & 2) != 0 ? empty({mean.size(0), mean.size(1)}, dtype) : no_tensor(dtype);
  Tensor dlogvar = (mask & 4) != 0 ? empty({mean.size(0), mean.size(1)}, dtype) : no_tensor(dtype);
  THO_DISPATCH_V2(dtype, "kl_terms_backward", AT_WRAP([&] {
    const double share = 1.0 / static_cast<double>(z.size(0));
    const double mi = scalar<scalar_t>(grad_index_code_mi) * share;
    const double tc = scalar<scalar_t>(grad_total_correlation) * share;
    const double dimwise = scalar<scalar_t>(grad_dimwise_kl) * share;
    const double between = scalar<scalar_t>(grad_between) * share;
    const double within = scalar<scalar_t>(grad_within) * share;
    // What the sum over the batch of each log-density weighs: one number for all samples, read with stride 0.
    const bool apart = partition.groups > 0;
    const auto a = static_cast<scalar_t>(tc + between - mi);
    const auto b = static_cast<scalar_t>(dimwise - tc - (apart ? within : between));
    const auto e = static_cast<scalar_t>(apart ? within - between : 0.0);
    auto op = aggregate_of<scalar_t>(z, mean, logvar, weights, dataset_size, offset, partition);
    op.joint = data<scalar_t>(joint);
    op.marginal = data<scalar_t>(marginal);
    op.grouped = data<scalar_t>(grouped);
    op.grad_joint = a != 0 ? &a : nullptr;
    op.grad_marginal = b != 0 ? &b : nullptr;
    op.grad_grouped = e != 0 ? &e : nullptr;
    run_aggregate_backward(op, dz, dmean, dlogvar, mask);
    const int64_t own = offset * op.dims;
    strucfast::own_backward(own_posteriors(op), static_cast<scalar_t>(mi),
                            static_cast<scalar_t>(standard_normal ? -dimwise : 0.0),
                            (mask & 1) != 0 ? data<scalar_t>(dz) : nullptr,
                            (mask & 2) != 0 ? data<scalar_t>(dmean) + own : nullptr,
                            (mask & 4) != 0 ? data<scalar_t>(dlogvar) + own : nullptr);
  }), ScalarType::Float, ScalarType::Double);
  return {dz, dmean, dlogvar};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_kl_terms_cpp", TORCH_BOX(&kl_terms));
  m.impl("_kl_terms_backward_cpp", TORCH_BOX(&kl_terms_backward));
}
