#include "aggregate.h"

#include <cmath>
#include <limits>

#include "lanes.h"

namespace strucfast {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;  // natural logarithm of 2 pi
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kLog2e = 1.44269504088896340736;
constexpr double kScaleSquared = 0.5 * kLog2e;  // (t / u)^2
constexpr double kScale = 0.84932180028801904272;
// Panels of posteriors whose joint densities wait for their maximum, and whose gradients are summed, together.
constexpr int64_t kForwardPanels = 16;
constexpr int64_t kBackwardPanels = 8;

// Posteriors a panel: 64 bytes, which the vectors of every level divide.
template <typename T>
constexpr int64_t kPanel = 64 / int64_t(sizeof(T));

template <typename T>
SF_INLINE int64_t num_panels(const Aggregate<T>& op) {
  return (op.posteriors + kPanel<T> - 1) / kPanel<T>;
}

// Per panel: mean, r and c of each dim, then the sum of c over each run.
template <typename T>
SF_INLINE int64_t panel_size(const Aggregate<T>& op) {
  return (3 * op.dims + op.num_runs()) * kPanel<T>;
}

// A vector that straddles two cache lines costs double.
template <typename T>
SF_INLINE int64_t whole_lines(int64_t elements) {
  return (elements + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// The bounds that L is relative to come before the panels.
template <typename T>
SF_INLINE int64_t bounds_size(const Aggregate<T>& op) {
  return whole_lines<T>(op.dims);
}

template <typename T>
SF_INLINE const T* panel(const Aggregate<T>& op, int64_t p) {
  return op.packed + bounds_size(op) + p * panel_size(op);
}

template <typename T>
SF_INLINE double bound_of_run(const Aggregate<T>& op, int64_t run) {
  double sum = 0;
  for (int64_t k = op.runs[run]; k < op.runs[run + 1]; ++k) sum += double(op.packed[k]);
  return sum;
}

// log2 of own weight / other weight, which only a sample's own posterior adds.
template <typename T>
SF_INLINE T own_excess(const Aggregate<T>& op) {
  return T((op.log_own - op.log_other) * kLog2e);
}

template <typename T>
SF_INLINE void pack(const Aggregate<T>& op) {
  constexpr int64_t P = kPanel<T>;
  const T inf = std::numeric_limits<T>::infinity();
  for (int64_t k = 0; k < op.dims; ++k) {
    const T* logvar = op.logvar + op.order[k] * op.logvar_strides[1];
    T least = inf;
    for (int64_t j = 0; j < op.posteriors; ++j) {
      const T value = logvar[j * op.logvar_strides[0]];
      least = value < least ? value : least;
    }
    // A bound that is not finite would turn every density into NaN.
    op.packed[k] = std::fabs(least) < inf ? -(least + T(kLog2Pi)) * T(kScaleSquared) : T(0);
  }
  for (int64_t p = 0; p < num_panels(op); ++p) {
    T* const to = op.packed + bounds_size(op) + p * panel_size(op);
    T* const sums = to + 3 * op.dims * P;
    const int64_t first = p * P;
    const int64_t count = op.posteriors - first < P ? op.posteriors - first : P;
    for (int64_t run = 0; run < op.num_runs(); ++run) {
      T* SF_RESTRICT sum = sums + run * P;
      for (int64_t l = 0; l < P; ++l) sum[l] = 0;
      for (int64_t k = op.runs[run]; k < op.runs[run + 1]; ++k) {
        const T* mean = op.mean + first * op.mean_strides[0] + op.order[k] * op.mean_strides[1];
        const T* logvar = op.logvar + first * op.logvar_strides[0] + op.order[k] * op.logvar_strides[1];
        T* SF_RESTRICT m = to + 3 * k * P;
        T* SF_RESTRICT r = m + P;
        T* SF_RESTRICT c = r + P;
        for (int64_t l = 0; l < P; ++l) {
          m[l] = l < count ? mean[l * op.mean_strides[0]] : T(0);
          r[l] = l < count ? logvar[l * op.logvar_strides[0]] : T(0);
        }
        const T bound = op.packed[k];
#pragma omp simd
        for (int64_t l = 0; l < P; ++l) {
          c[l] = -(r[l] + T(kLog2Pi)) * T(kScaleSquared) - bound;
          const T scale = vexp(T(-0.5) * r[l]) * T(kScale);
          // Finite, so that a sample at the very mean keeps its density.
          r[l] = scale > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max() : scale;
        }
        // Posteriors that fill the last panel up have density 0.
        for (int64_t l = count; l < P; ++l) c[l] = -inf;
#pragma omp simd
        for (int64_t l = 0; l < P; ++l) sum[l] += c[l];
      }
    }
  }
}

// Rows [first, first + kRows) of the tile; rows past the end repeat the last one and are dropped at the end.
template <class L>
struct Rows {
  using T = typename L::T;
  int64_t first, own_first;  // own_first: the posterior that drew the first row
  T excess;

  SF_INLINE Rows(const Aggregate<T>& op, int64_t row) : first(row), own_first(op.offset + row), excess(own_excess(op)) {}

  // Whether the posteriors of the vector that starts at `j` drew any of these rows, with a weight of their own.
  SF_INLINE bool own(int64_t j) const {
    return excess != T(0) && j < own_first + L::kRows && j + L::kLanes > own_first;
  }
  SF_INLINE typename L::Vec weight(int64_t j, int s) const {
    const int64_t lane = own_first + s - j;
    return each_lane<L>([&](int l) { return l == lane ? excess : T(0); });
  }
};

// Running maximum and sum of 2^(x - maximum), lane by lane.
template <class L>
struct Online {
  typename L::Vec max, sum;
};

// The sums of one block of rows: dims x rows vectors of 2^L, then per run (and jointly) the online sums.
template <class L>
struct ForwardState {
  typename L::T* sums;
  Online<L>* online;
};

template <class L, typename T = typename L::T>
SF_INLINE int64_t num_totals(const Aggregate<T>& op) {
  return op.groups > 0 ? op.groups + 1 : 1;
}

template <class L, bool Own, typename T = typename L::T>
SF_INLINE void forward_vector(const Aggregate<T>& op, const Rows<L>& rows, const T* z, const T* from, int64_t j,
                              T* SF_RESTRICT sums, T* SF_RESTRICT totals) {
  using Vec = typename L::Vec;
  constexpr int R = L::kRows, N = L::kLanes;
  constexpr int64_t P = kPanel<T>;
  const T* run_sums = from + 3 * op.dims * P;
  Vec excess[R], joint[R];
  for (int s = 0; s < R; ++s) {
    if constexpr (Own) excess[s] = rows.weight(j, s);
    joint[s] = Vec{};
    if constexpr (Own) joint[s] = excess[s];
  }
  for (int64_t run = 0; run < op.num_runs(); ++run) {
    Vec total[R];
    const Vec run_sum = load<L>(run_sums + run * P);
    for (int s = 0; s < R; ++s) total[s] = run_sum;
    for (int64_t k = op.runs[run]; k < op.runs[run + 1]; ++k) {
      const Vec mean = load<L>(from + 3 * k * P), r = load<L>(from + (3 * k + 1) * P);
      const Vec c = load<L>(from + (3 * k + 2) * P);
#pragma GCC unroll 4
      for (int s = 0; s < R; ++s) {
        const Vec t = (z[k * R + s] - mean) * r;
        total[s] -= t * t;
        Vec density = c - t * t;
        if constexpr (Own) density += excess[s];
        T* sum = sums + (k * R + s) * N;
        store<L>(sum, load<L>(sum) + exp2_lanes<L>(density));
      }
    }
    for (int s = 0; s < R; ++s) {
      joint[s] += total[s];
      if (op.groups > 0) {
        if constexpr (Own) total[s] += excess[s];
        store<L>(totals + ((run + 1) * R + s) * N, total[s]);
      }
    }
  }
  for (int s = 0; s < R; ++s) store<L>(totals + s * N, joint[s]);
}

template <class L, typename T = typename L::T>
SF_INLINE void forward_block(const Aggregate<T>& op, const Rows<L>& rows, const T* z, int64_t begin, int64_t end,
                             const ForwardState<L>& state, T* totals) {
  using Vec = typename L::Vec;
  constexpr int R = L::kRows, N = L::kLanes;
  constexpr int64_t P = kPanel<T>;
  const int64_t count = num_totals<L>(op) * R;
  T* to = totals;
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t v = 0; v < P; v += N) {
      const int64_t j = p * P + v;
      if (rows.own(j)) {
        forward_vector<L, true>(op, rows, z, panel(op, p) + v, j, state.sums, to);
      } else {
        forward_vector<L, false>(op, rows, z, panel(op, p) + v, j, state.sums, to);
      }
      to += count * N;
    }
  }
  const int64_t vectors = (end - begin) * (P / N);
  for (int64_t q = 0; q < count; ++q) {
    Online<L>& online = state.online[q];
    const T* from = totals + q * N;
    Vec max = online.max;
    for (int64_t v = 0; v < vectors; ++v) max = maximum(max, load<L>(from + v * count * N));
    Vec sum = online.sum * exp2_lanes<L>(online.max - max);
    for (int64_t v = 0; v < vectors; ++v) sum += exp2_lanes<L>(load<L>(from + v * count * N) - max);
    online = {max, sum};
  }
}

// L of sample i in dim k (in the order of the loops) under the vector of posteriors that starts at panel p, lane v.
template <class L, typename T = typename L::T>
SF_INLINE typename L::Vec marginal_density(const Aggregate<T>& op, int64_t i, int64_t k, T z, int64_t p, int64_t v) {
  using Vec = typename L::Vec;
  const T* from = panel(op, p) + 3 * k * kPanel<T> + v;
  const Vec t = (z - load<L>(from)) * load<L>(from + kPanel<T>);
  Vec density = load<L>(from + 2 * kPanel<T>) - t * t;
  const Rows<L> row(op, i);
  const int64_t j = p * kPanel<T> + v;
  if (row.own(j)) density += row.weight(j, 0);
  return density;
}

// Where every density lies far below the bound: the maximum first, then the sum.
template <class L, typename T = typename L::T>
SF_INLINE T marginal_with_maximum(const Aggregate<T>& op, int64_t i, int64_t k, T z) {
  using Vec = typename L::Vec;
  Vec best = all_lanes<L>(std::numeric_limits<T>::lowest());
  for (int64_t p = 0; p < num_panels(op); ++p) {
    for (int64_t v = 0; v < kPanel<T>; v += L::kLanes) best = maximum(best, marginal_density<L>(op, i, k, z, p, v));
  }
  const T max = max_lanes<L>(best);
  Vec sum = Vec{};
  for (int64_t p = 0; p < num_panels(op); ++p) {
    for (int64_t v = 0; v < kPanel<T>; v += L::kLanes) {
      sum += exp2_lanes<L>(marginal_density<L>(op, i, k, z, p, v) - max);
    }
  }
  return vlog(sum_lanes<L>(sum)) + max * T(kLn2);
}

template <class L, typename T = typename L::T>
SF_INLINE void finish_rows(const Aggregate<T>& op, const Rows<L>& rows, const T* z, const ForwardState<L>& state) {
  constexpr int R = L::kRows, N = L::kLanes;
  const T least = std::numeric_limits<T>::min() * T(1LL << 46);  // far enough above what exp2_lanes drops
  const int64_t count = op.samples - rows.first < R ? op.samples - rows.first : R;
  double whole = 0;
  for (int64_t run = 0; run < op.num_runs(); ++run) whole += bound_of_run(op, run);
  for (int64_t q = 0; q < num_totals<L>(op); ++q) {
    const double bound = (q == 0 ? whole : bound_of_run(op, q - 1)) * kLn2 + op.log_other;
    for (int64_t s = 0; s < count; ++s) {
      const Online<L>& online = state.online[q * R + s];
      const T max = max_lanes<L>(online.max);
      const T sum = sum_lanes<L>(online.sum * exp2_lanes<L>(online.max - max));
      const T value = T(double(vlog(sum)) + double(max) * kLn2 + bound);
      (q == 0 ? op.joint[rows.first + s] : op.grouped[(rows.first + s) * op.groups + q - 1]) = value;
    }
  }
  for (int64_t k = 0; k < op.dims; ++k) {
    const T bound = T(double(op.packed[k]) * kLn2 + op.log_other);
    T sums[R];
    for (int s = 0; s < R; ++s) sums[s] = sum_lanes<L>(load<L>(state.sums + (k * R + s) * N));
    for (int64_t s = 0; s < count; ++s) {
      const T value = sums[s] >= least ? vlog(sums[s]) : marginal_with_maximum<L>(op, rows.first + s, k, z[k * R + s]);
      op.marginal[(rows.first + s) * op.dims + op.order[k]] = value + bound;
    }
  }
}

// Elements of scratch are counted for the widest registers.
constexpr int kMostRows = 4;

template <class L, typename T = typename L::T>
SF_INLINE void forward_tiles(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch) {
  using Vec = typename L::Vec;
  constexpr int R = L::kRows, N = L::kLanes;
  constexpr int64_t blocks = kAggregateTile / R;
  const int64_t totals = num_totals<L>(op);
  const int64_t sums_size = op.dims * R * N, online_size = 2 * totals * R * N;
  const int64_t z_size = whole_lines<T>(op.dims * R);
  T* const waiting = scratch + blocks * (sums_size + online_size + z_size);
  for (int64_t tile = begin; tile < end; ++tile) {
    ForwardState<L> states[blocks];
    const T* z[blocks];
    T* memory = scratch;
    int64_t used = 0;
    for (int64_t first = tile * kAggregateTile; used < blocks && first < op.samples; first += R, ++used) {
      states[used] = {memory, reinterpret_cast<Online<L>*>(memory + sums_size)};
      T* rows = memory + sums_size + online_size;
      memory = rows + z_size;
      for (int64_t i = 0; i < sums_size; ++i) states[used].sums[i] = 0;
      // The lowest finite number: two maxima that met no density must not give inf - inf.
      const Online<L> start{all_lanes<L>(std::numeric_limits<T>::lowest()), Vec{}};
      for (int64_t q = 0; q < totals * R; ++q) states[used].online[q] = start;
      for (int s = 0; s < R; ++s) {
        const int64_t i = first + s < op.samples ? first + s : op.samples - 1;
        const T* from = op.z + i * op.z_strides[0];
        for (int64_t k = 0; k < op.dims; ++k) rows[k * R + s] = from[op.order[k] * op.z_strides[1]];
      }
      z[used] = rows;
    }
    for (int64_t p = 0; p < num_panels(op); p += kForwardPanels) {
      const int64_t last = p + kForwardPanels < num_panels(op) ? p + kForwardPanels : num_panels(op);
      for (int64_t b = 0; b < used; ++b) {
        forward_block<L>(op, Rows<L>(op, tile * kAggregateTile + b * R), z[b], p, last, states[b], waiting);
      }
    }
    for (int64_t b = 0; b < used; ++b) {
      finish_rows<L>(op, Rows<L>(op, tile * kAggregateTile + b * R), z[b], states[b]);
    }
  }
}

// Per sample: z, normaliser and upstream gradient of each dim, the last two of each group and of the joint density.
template <typename T>
SF_INLINE void pack_rows(const Aggregate<T>& op, int64_t begin, int64_t end) {
  double whole = 0;
  for (int64_t run = 0; run < op.num_runs(); ++run) whole += bound_of_run(op, run);
  const T other = T(op.log_other * kLog2e), whole_other = T(whole + op.log_other * kLog2e);
  for (int64_t i = begin; i < end; ++i) {
    T* to = op.packed_rows + i * op.row_size();
    for (int64_t k = 0; k < op.dims; ++k) {
      const int64_t d = op.order[k];
      to[k] = op.z[i * op.z_strides[0] + d * op.z_strides[1]];
      to[op.dims + k] = T(double(op.marginal[i * op.dims + d]) * kLog2e - double(op.packed[k]) - double(other));
      to[2 * op.dims + k] =
          op.grad_marginal == nullptr
              ? T(0)
              : op.grad_marginal[i * op.grad_marginal_strides[0] + d * op.grad_marginal_strides[1]];
    }
    to += 3 * op.dims;
    for (int64_t g = 0; g < op.groups; ++g) {
      to[2 * g] = T(double(op.grouped[i * op.groups + g]) * kLog2e - bound_of_run(op, g) - double(other));
      to[2 * g + 1] = op.grad_grouped == nullptr
                          ? T(0)
                          : op.grad_grouped[i * op.grad_grouped_strides[0] + g * op.grad_grouped_strides[1]];
    }
    to += 2 * op.groups;
    to[0] = T(double(op.joint[i]) * kLog2e - double(whole_other));
    to[1] = op.grad_joint == nullptr ? T(0) : op.grad_joint[i * op.grad_joint_stride];
  }
}

// `t` and `shared` are scratch: R vectors a dim, R vectors a run.
template <class L, bool Own, bool Totals, bool Marginal, typename T = typename L::T>
SF_INLINE void backward_vector(const Aggregate<T>& op, const Rows<L>& rows, const T* const* row, const T* from,
                               int64_t j, T* SF_RESTRICT to, T* SF_RESTRICT dz, T* SF_RESTRICT ts,
                               T* SF_RESTRICT shared) {
  using Vec = typename L::Vec;
  constexpr int R = L::kRows, N = L::kLanes;
  constexpr int64_t P = kPanel<T>;
  const int64_t dims = op.dims;
  Vec excess[R];
  if constexpr (Own) {
    for (int s = 0; s < R; ++s) excess[s] = rows.weight(j, s);
  }
  if constexpr (Totals) {
    // What the pair's joint and group densities pull with, alike for all dims of a run.
    Vec joint[R];
    for (int s = 0; s < R; ++s) joint[s] = Vec{};
    if constexpr (Own) {
      for (int s = 0; s < R; ++s) joint[s] = excess[s];
    }
    for (int64_t run = 0; run < op.num_runs(); ++run) {
      Vec total[R];
      const Vec run_sum = load<L>(from + (3 * dims + run) * P);
      for (int s = 0; s < R; ++s) total[s] = run_sum;
      for (int64_t k = op.runs[run]; k < op.runs[run + 1]; ++k) {
        const Vec mean = load<L>(from + 3 * k * P), r = load<L>(from + (3 * k + 1) * P);
#pragma GCC unroll 4
        for (int s = 0; s < R; ++s) {
          const Vec t = (row[s][k] - mean) * r;
          store<L>(ts + (k * R + s) * N, t);
          total[s] -= t * t;
        }
      }
      for (int s = 0; s < R; ++s) {
        joint[s] += total[s];
        if (op.grad_grouped != nullptr) {
          const T* group = row[s] + 3 * dims + 2 * run;
          if constexpr (Own) total[s] += excess[s];
          store<L>(shared + (run * R + s) * N, exp2_lanes<L>(total[s] - group[0]) * group[1]);
        }
      }
    }
    for (int s = 0; s < R; ++s) {
      const T* own = row[s] + 3 * dims + 2 * op.groups;
      const Vec pull = op.grad_joint == nullptr ? Vec{} : exp2_lanes<L>(joint[s] - own[0]) * own[1];
      for (int64_t run = 0; run < op.num_runs(); ++run) {
        T* slot = shared + (run * R + s) * N;
        store<L>(slot, op.grad_grouped == nullptr ? pull : load<L>(slot) + pull);
      }
    }
  }
  for (int64_t run = 0; run < op.num_runs(); ++run) {
    Vec pull[R];
    for (int s = 0; s < R; ++s) pull[s] = Totals ? load<L>(shared + (run * R + s) * N) : Vec{};
    for (int64_t k = op.runs[run]; k < op.runs[run + 1]; ++k) {
      const Vec mean = load<L>(from + 3 * k * P), r = load<L>(from + (3 * k + 1) * P);
      const Vec c = load<L>(from + (3 * k + 2) * P);
      Vec dmean = load<L>(to + 2 * k * P), dlogvar = load<L>(to + (2 * k + 1) * P);
#pragma GCC unroll 4
      for (int s = 0; s < R; ++s) {
        const Vec t = Totals ? load<L>(ts + (k * R + s) * N) : (row[s][k] - mean) * r;
        Vec weight = pull[s];
        if constexpr (Marginal) {
          Vec density = (c - row[s][dims + k]) - t * t;
          if constexpr (Own) density += excess[s];
          weight += exp2_lanes<L>(density) * row[s][2 * dims + k];
        }
        // t^2 may be infinite where the weight is 0, so it never appears alone.
        const Vec p = weight * t;
        dmean += p;
        dlogvar = dlogvar + p * t - weight * T(kScaleSquared);
        T* slot = dz + (k * R + s) * N;
        store<L>(slot, load<L>(slot) + p * r);
      }
      store<L>(to + 2 * k * P, dmean);
      store<L>(to + (2 * k + 1) * P, dlogvar);
    }
  }
}

template <class L, bool Totals, bool Marginal, typename T = typename L::T>
SF_INLINE void backward_rows(const Aggregate<T>& op, int64_t first, int64_t begin, int64_t end, T* gradients, T* part,
                             bool accumulate, T* scratch) {
  constexpr int R = L::kRows, N = L::kLanes;
  constexpr int64_t P = kPanel<T>;
  const Rows<L> rows(op, first);
  const int64_t count = op.samples - first < R ? op.samples - first : R;
  const int64_t dims = op.dims;
  T* const dz = scratch;
  T* const ts = dz + (dims * R + 4) * N;
  T* const shared = ts + dims * R * N;
  T* const sums = shared + op.num_runs() * R * N;
  T* const spare = sums + dims * R + 4;
  const T* row[R];
  for (int s = 0; s < R; ++s) {
    row[s] = op.packed_rows + (first + s) * op.row_size();
    if (s < count) continue;
    // A row past the end is the last one again, without gradients.
    const T* last = op.packed_rows + (op.samples - 1) * op.row_size();
    for (int64_t i = 0; i < op.row_size(); ++i) spare[i] = i >= 2 * dims && i < 3 * dims ? T(0) : last[i];
    for (int64_t g = 0; g < op.groups; ++g) spare[3 * dims + 2 * g + 1] = 0;
    spare[op.row_size() - 1] = 0;
    row[s] = spare;
  }
  for (int64_t i = 0; i < (dims * R + 4) * N; ++i) dz[i] = 0;
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t v = 0; v < P; v += N) {
      const int64_t j = p * P + v;
      const T* from = panel(op, p) + v;
      T* to = gradients + (p - begin) * 2 * dims * P + v;
      if (rows.own(j)) {
        backward_vector<L, true, Totals, Marginal>(op, rows, row, from, j, to, dz, ts, shared);
      } else {
        backward_vector<L, false, Totals, Marginal>(op, rows, row, from, j, to, dz, ts, shared);
      }
    }
  }
  for (int64_t i = 0; i < dims * R; i += 4) sum_lanes_of_four<L>(reinterpret_cast<typename L::Vec*>(dz + i * N), sums + i);
  for (int64_t s = 0; s < count; ++s) {
    T* to = part + (first + s) * dims;
    for (int64_t k = 0; k < dims; ++k) to[k] = accumulate ? to[k] + sums[k * R + s] : sums[k * R + s];
  }
}

template <class L, typename T = typename L::T>
SF_INLINE void backward_chunks(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch) {
  constexpr int64_t P = kPanel<T>;
  const int64_t panels = num_panels(op), chunks = aggregate_num_chunks(op);
  T* const gradients = scratch;
  T* const rest = gradients + kBackwardPanels * 2 * op.dims * P;
  const bool totals = op.grad_joint != nullptr || op.grad_grouped != nullptr;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t start = panels * chunk / chunks, stop = panels * (chunk + 1) / chunks;
    T* part = op.partials + chunk * op.samples * op.dims;
    for (int64_t p = start; p < stop; p += kBackwardPanels) {
      const int64_t last = p + kBackwardPanels < stop ? p + kBackwardPanels : stop;
      for (int64_t i = 0; i < (last - p) * 2 * op.dims * P; ++i) gradients[i] = 0;
      for (int64_t first = 0; first < op.samples; first += L::kRows) {
        if (totals && op.grad_marginal != nullptr) {
          backward_rows<L, true, true>(op, first, p, last, gradients, part, p > start, rest);
        } else if (totals) {
          backward_rows<L, true, false>(op, first, p, last, gradients, part, p > start, rest);
        } else {
          backward_rows<L, false, true>(op, first, p, last, gradients, part, p > start, rest);
        }
      }
      for (int64_t j = p * P; j < last * P && j < op.posteriors; ++j) {
        const T* from = gradients + (j / P - p) * 2 * op.dims * P + j % P;
        const T* packed = panel(op, j / P) + j % P;
        for (int64_t k = 0; k < op.dims; ++k) {
          const int64_t at = j * op.dims + op.order[k];
          if (op.dmean != nullptr) op.dmean[at] = from[2 * k * P] * packed[(3 * k + 1) * P] * T(2 * kLn2);
          if (op.dlogvar != nullptr) op.dlogvar[at] = from[(2 * k + 1) * P] * T(kLn2);
        }
      }
    }
  }
}

template <typename T>
SF_INLINE void reduce(const Aggregate<T>& op, int64_t begin, int64_t end) {
  const int64_t chunks = aggregate_num_chunks(op);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t k = 0; k < op.dims; ++k) {
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += op.partials[(chunk * op.samples + i) * op.dims + k];
      op.dz[i * op.dims + op.order[k]] = sum * T(-2 * kLn2);
    }
  }
}

#define AGGREGATE_LEVEL(TARGET, T, BYTES, ROWS)                                                          \
  TARGET void forward_level(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch) {            \
    forward_tiles<Lanes<T, BYTES, ROWS>>(op, begin, end, scratch);                                       \
  }                                                                                                      \
  TARGET void backward_level(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch) {           \
    backward_chunks<Lanes<T, BYTES, ROWS>>(op, begin, end, scratch);                                     \
  }                                                                                                      \
  TARGET void pack_level(const Aggregate<T>& op) { pack(op); }                                           \
  TARGET void pack_rows_level(const Aggregate<T>& op, int64_t begin, int64_t end) { pack_rows(op, begin, end); } \
  TARGET void reduce_level(const Aggregate<T>& op, int64_t begin, int64_t end) { reduce(op, begin, end); }
#define AGGREGATE_LEVELS(TARGET, BYTES, ROWS) \
  AGGREGATE_LEVEL(TARGET, float, BYTES, ROWS) \
  AGGREGATE_LEVEL(TARGET, double, BYTES, ROWS)

// Register blocks differ by instruction level, so each level is a function of its own instead of a clone.
#if defined(SF_HAS_CLONES)
AGGREGATE_LEVELS(__attribute__((target("default"))), 16, 2)
AGGREGATE_LEVELS(__attribute__((target("arch=x86-64-v3"))), 32, 2)
AGGREGATE_LEVELS(__attribute__((target("arch=x86-64-v4"))), 64, 4)
#elif defined(__AVX512F__)
AGGREGATE_LEVELS(, 64, 4)
#elif defined(__AVX2__)
AGGREGATE_LEVELS(, 32, 2)
#else
AGGREGATE_LEVELS(, 16, 2)
#endif
#undef AGGREGATE_LEVELS
#undef AGGREGATE_LEVEL

}  // namespace

template <typename T>
int64_t aggregate_packed_size(const Aggregate<T>& op) {
  return bounds_size(op) + num_panels(op) * panel_size(op);
}

template <typename T>
int64_t aggregate_forward_scratch(const Aggregate<T>& op) {
  const int64_t totals = op.groups + 1;
  const int64_t state = (op.dims + 2 * totals) * kPanel<T> + whole_lines<T>(op.dims);
  return kAggregateTile * state + kForwardPanels * kPanel<T> * totals * kMostRows;
}

template <typename T>
int64_t aggregate_backward_scratch(const Aggregate<T>& op) {
  const int64_t vectors = kBackwardPanels * 2 * op.dims + (2 * op.dims + op.num_runs()) * kMostRows + 4;
  return vectors * kPanel<T> + whole_lines<T>(op.dims * kMostRows + 4 + op.row_size());
}

template <typename T>
int64_t aggregate_num_chunks(const Aggregate<T>& op) {
  // Each chunk has its own dz: small batches need enough of them for a few threads, large ones not too many.
  const int64_t panels = num_panels(op);
  if (panels < 128) return panels < 8 ? 1 : panels < 64 ? panels / 4 : 16;
  return panels < 256 ? panels / 8 : 32;
}

template <typename T>
void aggregate_pack(const Aggregate<T>& op) {
  pack_level(op);
}

template <typename T>
void aggregate_forward(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch) {
  forward_level(op, begin, end, scratch);
}

template <typename T>
void aggregate_pack_rows(const Aggregate<T>& op, int64_t begin, int64_t end) {
  pack_rows_level(op, begin, end);
}

template <typename T>
void aggregate_backward(const Aggregate<T>& op, int64_t begin, int64_t end, T* scratch) {
  backward_level(op, begin, end, scratch);
}

template <typename T>
void aggregate_reduce(const Aggregate<T>& op, int64_t begin, int64_t end) {
  reduce_level(op, begin, end);
}

#define AGGREGATE_INSTANTIATE(T)                                                          \
  template int64_t aggregate_packed_size(const Aggregate<T>&);                            \
  template int64_t aggregate_forward_scratch(const Aggregate<T>&);                        \
  template int64_t aggregate_backward_scratch(const Aggregate<T>&);                       \
  template int64_t aggregate_num_chunks(const Aggregate<T>&);                             \
  template void aggregate_pack(const Aggregate<T>&);                                      \
  template void aggregate_forward(const Aggregate<T>&, int64_t, int64_t, T*);             \
  template void aggregate_pack_rows(const Aggregate<T>&, int64_t, int64_t);               \
  template void aggregate_backward(const Aggregate<T>&, int64_t, int64_t, T*);            \
  template void aggregate_reduce(const Aggregate<T>&, int64_t, int64_t);
AGGREGATE_INSTANTIATE(float)
AGGREGATE_INSTANTIATE(double)
#undef AGGREGATE_INSTANTIATE

}  // namespace strucfast
