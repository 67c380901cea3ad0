#pragma once
#include "../../cpu/aggregate.h"

#include <cmath>

#include "common.h"

// The passes over pairs of samples and posteriors, for every op that needs the aggregate posterior's log-densities.
namespace strucfast::bindings {

// Some 10 us of (sample, posterior, dim) triples: with less a second thread costs more than it brings.
constexpr int64_t kPairWorkPerThread = 1 << 15;

enum AggregateWeights { kMss, kMws, kNaive };

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
void run_aggregate(Aggregate<T> op, const Tensor& joint, const Tensor& marginal, const Tensor& grouped) {
  op.joint = data<T>(joint);
  op.marginal = data<T>(marginal);
  op.grouped = data<T>(grouped);
  const int64_t tiles = (op.samples + kAggregateTile - 1) / kAggregateTile;
  const int64_t slots = num_slots(tiles, op.samples * op.posteriors * op.dims, kPairWorkPerThread);
  const int64_t scratch_size = aggregate_forward_scratch(op);
  const Tensor packed = empty({aggregate_packed_size(op)}, joint.scalar_type());
  const Tensor scratch = empty({slots * scratch_size}, joint.scalar_type());
  op.packed = data<T>(packed);
  aggregate_pack(op);
  for_ranges(tiles, 1, slots, data<T>(scratch), scratch_size,
             [&](int64_t begin, int64_t end, T* memory) { aggregate_forward(op, begin, end, memory); });
}

// Gradients of the three; what the mask does not ask for is an empty tensor.
template <typename T>
void run_aggregate_backward(Aggregate<T> op, Tensor& dz, Tensor& dmean, Tensor& dlogvar, int64_t mask) {
  if (op.samples == 0 || (op.grad_joint == nullptr && op.grad_marginal == nullptr && op.grad_grouped == nullptr)) {
    for (Tensor* t : {&dz, &dmean, &dlogvar}) torch::stable::zero_(*t);
    return;
  }
  op.dz = (mask & 1) != 0 ? data<T>(dz) : nullptr;
  op.dmean = (mask & 2) != 0 ? data<T>(dmean) : nullptr;
  op.dlogvar = (mask & 4) != 0 ? data<T>(dlogvar) : nullptr;
  const int64_t chunks = aggregate_num_chunks(op);
  const int64_t slots = num_slots(chunks, 2 * op.samples * op.posteriors * op.dims, kPairWorkPerThread);
  const int64_t scratch_size = aggregate_backward_scratch(op);
  const int64_t part = op.samples * op.dims;
  const Tensor packed = empty({aggregate_packed_size(op)}, dz.scalar_type());
  const Tensor memory =
      empty({slots * scratch_size + op.samples * op.row_size() + chunks * part}, dz.scalar_type());
  op.packed = data<T>(packed);
  T* const scratch = data<T>(memory);
  op.packed_rows = scratch + slots * scratch_size;
  op.partials = op.packed_rows + op.samples * op.row_size();
  aggregate_pack(op);
  aggregate_pack_rows(op, 0, op.samples);
  for_ranges(chunks, 1, slots, scratch, scratch_size,
             [&](int64_t begin, int64_t end, T* own) { aggregate_backward(op, begin, end, own); });
  if (op.dz != nullptr) aggregate_reduce(op, 0, op.samples);
}

}  // namespace strucfast::bindings
