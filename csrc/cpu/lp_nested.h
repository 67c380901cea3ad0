#pragma once
#include <cstdint>

// The ISA log-density (an Lp-nested distribution of depth 2) and its gradients, recomputed from z.
namespace strucfast {

// How the powers of one subspace are taken: p = 1 (or a single coordinate) and p = 2 need none per coordinate.
enum class LpKind { kGeneral, kOne, kTwo };

template <typename T>
struct LpSubspace {
  int64_t offset, size;
  LpKind kind;
  T p, inverse_scale;
};

template <typename T>
struct LpNested {
  int64_t rows, dims, num_subspaces, largest;  // largest: the most coordinates that one subspace has
  const LpSubspace<T>* subspaces;
  T root;
  const T* z;  // rows of unit stride
  int64_t z_stride;
  // Forward only.
  T log_normaliser;
  T* log_prob;
  // Backward only. dz and sums are null where they were not asked for.
  const T* grad;
  int64_t grad_stride;
  bool entropy;  // whether the sums of g E_k H_k are wanted
  T* dz;
  // Per unit 2 + 2K sums over its rows: g, g sum_k E_k log v_k, (g E_k H_k), (g E_k).
  double* sums;
};

// Units of work are fixed runs of rows, so that no sum depends on the number of threads.
template <typename T>
int64_t lp_nested_units(const LpNested<T>& op);

// Elements of T that a call below needs as scratch memory of its own.
template <typename T>
int64_t lp_nested_scratch(const LpNested<T>& op);

template <typename T>
void lp_nested_forward(const LpNested<T>& op, int64_t begin, int64_t end, T* scratch);
template <typename T>
void lp_nested_backward(const LpNested<T>& op, int64_t begin, int64_t end, T* scratch);

}  // namespace strucfast
