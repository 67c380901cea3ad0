#include "lp_nested.h"

#include <algorithm>
#include <limits>

#include "lp_nested_lanes.h"
#include "transpose.h"

namespace strucfast {
namespace {

// Rows of a unit: few enough that some thousand points fill two threads, many enough to hide a unit's own sums.
constexpr int64_t kUnitRows = 512;

// p0 = high + low such that high times an exponent of the type is exact.
template <typename T>
SF_INLINE T high_part(T root) {
  constexpr int kDropped = sizeof(T) == 4 ? 9 : 13;
  return from_bits<T>(to_bits(root) & ~((typename VecMath<T>::Int(1) << kDropped) - 1));
}

template <typename T, LpKind kKind>
SF_INLINE void add_energy(LpLanes<T>& w, const T* z, const LpSubspace<T>& s, T root, T* SF_RESTRICT energy) {
  lp_total<T, kKind, false>(w, z, nullptr, s.size, s.p);
  const T inverse_p = T(1) / s.p, high = high_part(root), low = root - high;
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    energy[i] += lp_power<T, kKind, false>(w, i, s, inverse_p, root, high, low).energy;
  }
}

template <typename T>
SF_CLONES void forward_tile(const LpNested<T>& op, LpLanes<T>& w, int64_t row, int64_t rows, T* tile) {
  T energy[kLanes] = {};
  for (int64_t k = 0; k < op.num_subspaces; ++k) {
    const LpSubspace<T>& s = op.subspaces[k];
    gather<kLanes>(op.z + row * op.z_stride + s.offset, op.z_stride, rows, s.size, tile);
    if (lp_may_be_near(s, op.root) && lp_total_near<T, false>(w, tile, nullptr, s.size, s.p)) {
      const T exponent = op.root / s.p, inverse_scale = s.inverse_scale;
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) {
        const T log_power = exponent * LpLanes<T>::log2_bits(to_bits(w.total[i]));
        energy[i] += from_bits<T>(LpLanes<T>::exp2_bits(log_power)) * inverse_scale;
      }
      continue;
    }
    lp_unit(w, tile, s.size);
    if (s.kind == LpKind::kGeneral) {
      add_energy<T, LpKind::kGeneral>(w, tile, s, op.root, energy);
    } else if (s.kind == LpKind::kTwo) {
      add_energy<T, LpKind::kTwo>(w, tile, s, op.root, energy);
    } else {
      add_energy<T, LpKind::kOne>(w, tile, s, op.root, energy);
    }
  }
  for (int64_t i = 0; i < rows; ++i) op.log_prob[row + i] = op.log_normaliser - energy[i];
}

// Sums of a unit, per lane; the last two of one subspace.
template <typename T>
struct Sums {
  T *upstream, *log_norm, *entropy, *energy;
};

// dz over z, and the sums of this subspace.
template <typename T, LpKind kKind>
SF_INLINE void add_gradients(LpLanes<T>& w, T* z, typename LpLanes<T>::Int* slopes, const LpSubspace<T>& s, T root,
                             bool with_entropy, const T* grad, Sums<T> sums) {
  using L = LpLanes<T>;
  using Int = typename L::Int;
  constexpr T kLargest = std::numeric_limits<T>::max();
  lp_total<T, kKind, true>(w, z, slopes, s.size, s.p);
  if (kKind != LpKind::kGeneral && with_entropy) lp_moment<T, kKind>(w, z, s.size);
  const T inverse_p = T(1) / s.p, high = high_part(root), low = root - high, p = s.p;
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const LpPower<T> power = lp_power<T, kKind, true>(w, i, s, inverse_p, root, high, low);
    const bool empty = w.largest[i] < L::kStep;
    const T inverse_total = T(1) / (empty ? T(1) : w.total[i]);
    T factor = power.mantissa * inverse_total * (-root * grad[i]);
    const Int exponent = power.exponent - (kKind == LpKind::kTwo ? 2 : 1) * power.unit_exponent;
    if (kKind == LpKind::kGeneral) {
      // One part raises the slopes' own exponents, so that a slope too small for the type is not lost.
      const Int raise = L::bounded(exponent, -L::kMost, L::kMost);
      w.raise[i] = raise * L::kStep;
      w.room[i] = L::kInfinity - 1 - (raise > 0 ? w.raise[i] : Int(0));
      factor *= power_of_two<T>(L::bounded(exponent - raise, 1 - L::kBias, L::kBias));
      factor = factor > kLargest ? kLargest : factor;
      factor = factor < -kLargest ? -kLargest : factor;
    } else {
      factor = L::scaled(factor, exponent);
    }
    factor = w.largest[i] >= L::kInfinity ? from_bits<T>(w.largest[i]) - from_bits<T>(w.largest[i]) : factor;
    w.factor[i] = empty ? T(0) : factor;
    // An infinite energy would make NaN of an upstream gradient of 0.
    const T weighted = grad[i] * (power.energy > kLargest ? kLargest : power.energy);
    sums.log_norm[i] += weighted * power.log_norm;
    sums.energy[i] += weighted;
    sums.entropy[i] += with_entropy ? weighted * (power.log_total - p * (w.moment[i] * inverse_total)) : T(0);
  }
  for (int64_t j = 0; j < s.size; ++j) {
    T* SF_RESTRICT row = z + j * kLanes;
    const Int* SF_RESTRICT slope = slopes + (kKind == LpKind::kGeneral ? j * kLanes : 0);
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Int bits = to_bits(row[i]), sign = bits & ~L::kAbs;
      T of_z;
      if (kKind == LpKind::kGeneral) {
        const Int own = (slope[i] < w.room[i] ? slope[i] : w.room[i]) + w.raise[i];
        of_z = from_bits<T>((own > 0 ? own : Int(0)) | sign) * w.factor[i];
      } else {
        of_z = kKind == LpKind::kTwo ? row[i] * w.factor[i] : from_bits<T>(to_bits(w.factor[i]) ^ sign);
        of_z = (bits & L::kAbs) < L::kStep ? T(0) : of_z;
      }
      row[i] = of_z;
    }
  }
}

// The same by the short way; false, and nothing done, where that cannot.
template <typename T>
SF_INLINE bool add_near_gradients(LpLanes<T>& w, T* z, typename LpLanes<T>::Int* slopes, const LpSubspace<T>& s, T root,
                                  const T* grad, Sums<T> sums) {
  using L = LpLanes<T>;
  if (!lp_may_be_near(s, root) || !lp_total_near<T, true>(w, z, slopes, s.size, s.p)) return false;
  const T p = s.p, inverse_p = T(1) / p, exponent = root / p, inverse_scale = s.inverse_scale;
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const T total = w.total[i], log_total = L::log2_bits(to_bits(total)), inverse_total = T(1) / total;
    const T weighted = grad[i] * (from_bits<T>(L::exp2_bits(exponent * log_total)) * inverse_scale);
    w.factor[i] = -root * weighted * inverse_total;
    sums.log_norm[i] += weighted * (log_total * inverse_p);
    sums.energy[i] += weighted;
    sums.entropy[i] += weighted * (log_total - p * (w.moment[i] * inverse_total));
  }
  for (int64_t j = 0; j < s.size; ++j) {
    T* SF_RESTRICT row = z + j * kLanes;
    const typename L::Int* SF_RESTRICT slope = slopes + j * kLanes;
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) row[i] = from_bits<T>(slope[i] | (to_bits(row[i]) & ~L::kAbs)) * w.factor[i];
  }
  return true;
}

template <typename T>
SF_CLONES void backward_tile(const LpNested<T>& op, LpLanes<T>& w, int64_t row, int64_t rows, T* tile, Sums<T> sums) {
  auto* const slopes = reinterpret_cast<typename LpLanes<T>::Int*>(tile + op.largest * kLanes);
  T grad[kLanes] = {};
  for (int64_t i = 0; i < rows; ++i) grad[i] = op.grad[(row + i) * op.grad_stride];
  for (int i = 0; i < kLanes; ++i) sums.upstream[i] += grad[i];
  for (int64_t k = 0; k < op.num_subspaces; ++k) {
    const LpSubspace<T>& s = op.subspaces[k];
    gather<kLanes>(op.z + row * op.z_stride + s.offset, op.z_stride, rows, s.size, tile);
    if (!add_near_gradients(w, tile, slopes, s, op.root, grad, sums)) {
      const bool entropy = op.entropy && s.size > 1;
      lp_unit(w, tile, s.size);
      if (s.kind == LpKind::kGeneral) {
        add_gradients<T, LpKind::kGeneral>(w, tile, slopes, s, op.root, entropy, grad, sums);
      } else if (s.kind == LpKind::kTwo) {
        add_gradients<T, LpKind::kTwo>(w, tile, slopes, s, op.root, entropy, grad, sums);
      } else {
        add_gradients<T, LpKind::kOne>(w, tile, slopes, s, op.root, entropy, grad, sums);
      }
    }
    if (op.dz != nullptr) scatter<kLanes>(tile, rows, s.size, op.dz + row * op.dims + s.offset, op.dims);
    sums.entropy += kLanes;
    sums.energy += kLanes;
  }
}

template <typename T>
double sum_of_lanes(const T* lanes) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  return total;
}

template <typename T>
void write_sums(const LpNested<T>& op, Sums<T> sums, double* to) {
  constexpr double kLn2 = 0.69314718055994530942;
  to[0] = sum_of_lanes(sums.upstream);
  to[1] = kLn2 * sum_of_lanes(sums.log_norm);
  for (int64_t k = 0; k < op.num_subspaces; ++k) {
    to[2 + k] = kLn2 * sum_of_lanes(sums.entropy + k * kLanes);
    to[2 + op.num_subspaces + k] = sum_of_lanes(sums.energy + k * kLanes);
  }
}

template <typename T, typename F>
void for_tiles(const LpNested<T>& op, int64_t unit, const F& f) {
  const int64_t end = std::min(op.rows, (unit + 1) * kUnitRows);
  for (int64_t row = unit * kUnitRows; row < end; row += kLanes) f(row, std::min<int64_t>(kLanes, end - row));
}

}  // namespace

template <typename T>
int64_t lp_nested_units(const LpNested<T>& op) {
  return (op.rows + kUnitRows - 1) / kUnitRows;
}

template <typename T>
int64_t lp_nested_scratch(const LpNested<T>& op) {
  return (2 * op.largest + 2 + 2 * op.num_subspaces) * kLanes;
}

template <typename T>
void lp_nested_forward(const LpNested<T>& op, int64_t begin, int64_t end, T* scratch) {
  LpLanes<T> lanes;
  for (int64_t unit = begin; unit < end; ++unit) {
    for_tiles(op, unit, [&](int64_t row, int64_t rows) { forward_tile(op, lanes, row, rows, scratch); });
  }
}

template <typename T>
void lp_nested_backward(const LpNested<T>& op, int64_t begin, int64_t end, T* scratch) {
  LpLanes<T> lanes;
  T* const first = scratch + 2 * op.largest * kLanes;
  const int64_t count = 2 + 2 * op.num_subspaces;
  const Sums<T> sums{first, first + kLanes, first + 2 * kLanes, first + (2 + op.num_subspaces) * kLanes};
  for (int64_t unit = begin; unit < end; ++unit) {
    std::fill_n(first, count * kLanes, T(0));
    for_tiles(op, unit, [&](int64_t row, int64_t rows) { backward_tile(op, lanes, row, rows, scratch, sums); });
    if (op.sums != nullptr) write_sums(op, sums, op.sums + unit * count);
  }
}

#define SF_INSTANTIATE(T)                                                                     \
  template int64_t lp_nested_units<T>(const LpNested<T>&);                                    \
  template int64_t lp_nested_scratch<T>(const LpNested<T>&);                                  \
  template void lp_nested_forward<T>(const LpNested<T>&, int64_t, int64_t, T*);               \
  template void lp_nested_backward<T>(const LpNested<T>&, int64_t, int64_t, T*);
SF_INSTANTIATE(float)
SF_INSTANTIATE(double)
#undef SF_INSTANTIATE

}  // namespace strucfast
