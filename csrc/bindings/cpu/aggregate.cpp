#include "../../cpu/aggregate.h"

#include <torch/headeronly/core/Dispatch_v2.h>

#include <cmath>
#include <tuple>

#include "common.h"

namespace {

using strucfast::Aggregate;
using strucfast::bindings::empty;
using strucfast::bindings::for_ranges;
using strucfast::bindings::no_tensor;
using strucfast::bindings::num_slots;
using strucfast::bindings::OptionalTensor;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Below this many (sample, posterior, dim) triples a second thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 18;

enum Weights { kMss, kMws, kNaive };

// The dims group by group, and where each group starts; one run of all dims without groups.
struct Partition {
  std::vector<int64_t> order, runs;
  int64_t groups = 0;

  Partition(const std::vector<int64_t>& labels, int64_t dims) {
    for (const int64_t label : labels) groups = std::max(groups, label + 1);
    for (int64_t g = 0; g < std::max<int64_t>(groups, 1); ++g) {
      runs.push_back(static_cast<int64_t>(order.size()));
      for (int64_t d = 0; d < dims; ++d) {
        if (groups == 0 || labels[d] == g) order.push_back(d);
      }
    }
    runs.push_back(dims);
  }
};

template <typename T>
Aggregate<T> aggregate_of(const Tensor& z, const Tensor& mean, const Tensor& logvar, int64_t weights,
                          int64_t dataset_size, int64_t offset, const Partition& partition) {
  Aggregate<T> op{};
  op.samples = z.size(0);
  op.posteriors = mean.size(0);
  op.dims = z.size(1);
  op.groups = partition.groups;
  op.order = partition.order.data();
  op.runs = partition.runs.data();
  const double m = static_cast<double>(op.posteriors), n = static_cast<double>(dataset_size);
  op.log_own = op.log_other = weights == kNaive ? -std::log(m) : -std::log(n) - std::log(m);
  if (weights == kMss) {
    // One posterior comes with N = 1: it is the whole mixture.
    op.log_own = op.posteriors == 1 ? 0.0 : -std::log(n);
    op.log_other = op.posteriors == 1 ? 0.0 : std::log((n - 1) / n) - std::log(m - 1);
  }
  op.offset = offset;
  op.z = static_cast<const T*>(z.const_data_ptr());
  op.mean = static_cast<const T*>(mean.const_data_ptr());
  op.logvar = static_cast<const T*>(logvar.const_data_ptr());
  for (int i = 0; i < 2; ++i) {
    op.z_strides[i] = z.stride(i);
    op.mean_strides[i] = mean.stride(i);
    op.logvar_strides[i] = logvar.stride(i);
  }
  return op;
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T>
void run_forward(Aggregate<T> op, const Tensor& joint, const Tensor& marginal, const Tensor& grouped) {
  op.joint = data<T>(joint);
  op.marginal = data<T>(marginal);
  op.grouped = data<T>(grouped);
  const int64_t tiles = (op.samples + strucfast::kAggregateTile - 1) / strucfast::kAggregateTile;
  const int64_t slots = num_slots(tiles, op.samples * op.posteriors * op.dims, kWorkPerThread);
  const int64_t scratch_size = strucfast::aggregate_forward_scratch(op);
  const Tensor packed = empty({strucfast::aggregate_packed_size(op)}, joint.scalar_type());
  const Tensor scratch = empty({slots * scratch_size}, joint.scalar_type());
  op.packed = data<T>(packed);
  strucfast::aggregate_pack(op);
  for_ranges(tiles, 1, slots, data<T>(scratch), scratch_size,
             [&](int64_t begin, int64_t end, T* memory) { strucfast::aggregate_forward(op, begin, end, memory); });
}

std::tuple<Tensor, Tensor, Tensor> aggregate(const Tensor& z, const Tensor& mean, const Tensor& logvar, int64_t weights,
                                             int64_t dataset_size, int64_t offset, std::vector<int64_t> groups) {
  const Partition partition(groups, z.size(1));
  const ScalarType dtype = z.scalar_type();
  const Tensor joint = empty({z.size(0)}, dtype);
  const Tensor marginal = empty({z.size(0), z.size(1)}, dtype);
  const Tensor grouped = empty({z.size(0), partition.groups}, dtype);
  if (z.size(0) > 0) {
    THO_DISPATCH_V2(dtype, "aggregate_log_density", AT_WRAP([&] {
      run_forward(aggregate_of<scalar_t>(z, mean, logvar, weights, dataset_size, offset, partition), joint, marginal,
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

template <typename T>
void run_backward(Aggregate<T> op, const Tensor& dz, const Tensor& dmean, const Tensor& dlogvar, int64_t mask) {
  op.dz = (mask & 1) != 0 ? data<T>(dz) : nullptr;
  op.dmean = (mask & 2) != 0 ? data<T>(dmean) : nullptr;
  op.dlogvar = (mask & 4) != 0 ? data<T>(dlogvar) : nullptr;
  const int64_t chunks = strucfast::aggregate_num_chunks(op);
  const int64_t slots = num_slots(chunks, 2 * op.samples * op.posteriors * op.dims, kWorkPerThread);
  const int64_t scratch_size = strucfast::aggregate_backward_scratch(op);
  const int64_t part = op.samples * op.dims;
  const Tensor packed = empty({strucfast::aggregate_packed_size(op)}, dz.scalar_type());
  const Tensor memory =
      empty({slots * scratch_size + op.samples * op.row_size() + chunks * part}, dz.scalar_type());
  op.packed = data<T>(packed);
  T* const scratch = data<T>(memory);
  op.packed_rows = scratch + slots * scratch_size;
  op.partials = op.packed_rows + op.samples * op.row_size();
  strucfast::aggregate_pack(op);
  strucfast::aggregate_pack_rows(op, 0, op.samples);
  for_ranges(chunks, 1, slots, scratch, scratch_size,
             [&](int64_t begin, int64_t end, T* own) { strucfast::aggregate_backward(op, begin, end, own); });
  if (op.dz != nullptr) strucfast::aggregate_reduce(op, 0, op.samples);
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
  const Tensor dz = (mask & 1) != 0 ? empty({z.size(0), z.size(1)}, dtype) : no_tensor(dtype);
  const Tensor dmean = (mask & 2) != 0 ? empty({mean.size(0), mean.size(1)}, dtype) : no_tensor(dtype);
  const Tensor dlogvar = (mask & 4) != 0 ? empty({mean.size(0), mean.size(1)}, dtype) : no_tensor(dtype);
  bool nothing = z.size(0) == 0;
  THO_DISPATCH_V2(dtype, "aggregate_log_density_backward", AT_WRAP([&] {
    Aggregate<scalar_t> op = aggregate_of<scalar_t>(z, mean, logvar, weights, dataset_size, offset, partition);
    op.joint = data<scalar_t>(joint);
    op.marginal = data<scalar_t>(marginal);
    op.grouped = data<scalar_t>(grouped);
    op.grad_joint = gradient<scalar_t>(grad_joint, &op.grad_joint_stride);
    op.grad_marginal = gradient<scalar_t>(grad_marginal, op.grad_marginal_strides);
    op.grad_grouped = gradient<scalar_t>(grad_grouped, op.grad_grouped_strides);
    nothing = nothing || (op.grad_joint == nullptr && op.grad_marginal == nullptr && op.grad_grouped == nullptr);
    if (!nothing) run_backward(op, dz, dmean, dlogvar, mask);
  }), ScalarType::Float, ScalarType::Double);
  if (nothing) {
    Tensor outputs[] = {dz, dmean, dlogvar};
    for (Tensor& t : outputs) torch::stable::zero_(t);
  }
  return {dz, dmean, dlogvar};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_aggregate_log_density_cpp", TORCH_BOX(&aggregate));
  m.impl("_aggregate_log_density_backward_cpp", TORCH_BOX(&aggregate_backward));
}
