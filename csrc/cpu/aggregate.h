#pragma once
#include <cstdint>

// Log-densities of S samples under a weighted mixture of M diagonal Gaussians (jointly, per dim, per group of dims) and
// their backward. Torch-free; nothing here allocates or starts threads: the caller hands out ranges, one scratch buffer
// per range that runs at the same time, and the packed copies. Logarithms inside are to base 2, relative to an upper
// bound of each dim's densities: L_ijd = c_jd - t_ijd^2, t = (z_id - mean_jd) r_jd, r = e^{-logvar/2} sqrt(log2(e)/2).
namespace strucfast {

template <typename T>
struct Aggregate {
  int64_t samples, posteriors, dims;
  int64_t groups;             // 0 without
  const int64_t* order;       // the dims, group by group
  const int64_t* runs;        // where each group starts in `order`, then dims; {0, dims} without groups
  double log_own, log_other;  // natural logarithms of the weights
  int64_t offset;             // sample i was drawn from posterior offset + i
  const T* z;                 // with two strides each
  const T* mean;
  const T* logvar;
  int64_t z_strides[2], mean_strides[2], logvar_strides[2];
  T *joint, *marginal, *grouped;  // (S), (S, D), (S, G), contiguous; written by the forward, read by the backward
  // Backward only. Upstream gradients with their strides; null where absent.
  const T *grad_joint, *grad_marginal, *grad_grouped;
  int64_t grad_joint_stride, grad_marginal_strides[2], grad_grouped_strides[2];
  T *dz, *dmean, *dlogvar;  // contiguous, or null
  T* packed;                // aggregate_packed_size elements, filled by aggregate_pack
  T* packed_rows;           // backward only: aggregate_rows_size elements, filled by aggregate_pack_rows
  T* partials;              // backward only: (num_chunks, S, D), dz of each chunk of posteriors

  int64_t num_runs() const { return groups > 0 ? groups : 1; }
  int64_t row_size() const { return 3 * dims + 2 * groups + 2; }
};

// Samples and posteriors are cut by the shape alone, so that no sum depends on the thread count.
constexpr int64_t kAggregateTile = 32;

template <typename T>
int64_t aggregate_packed_size(const Aggregate<T>& op);
template <typename T>
int64_t aggregate_forward_scratch(const Aggregate<T>& op);
template <typename T>
int64_t aggregate_backward_scratch(const Aggregate<T>& op);
template <typename T>
int64_t aggregate_num_chunks(const Aggregate<T>& op);

// The posteriors in the order of the loops; before either direction.
template <typename T>
void aggregate_pack(const Aggregate<T>& op);

// The range runs over tiles of kAggregateTile samples.
template <typename T>
void aggregate_forward(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch);

// Samples, normalisers and upstream gradients in the order of the loops; the range runs over the samples.
template <typename T>
void aggregate_pack_rows(const Aggregate<T>& op, int64_t begin, int64_t end);

// The range runs over the chunks of posteriors: dmean, dlogvar and the chunk's part of dz.
template <typename T>
void aggregate_backward(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch);

// dz, the sum of the parts in the order of the chunks; the range runs over the samples.
template <typename T>
void aggregate_reduce(const Aggregate<T>& op, int64_t begin, int64_t end);

}  // namespace strucfast
