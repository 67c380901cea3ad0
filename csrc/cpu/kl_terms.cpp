#include "kl_terms.h"

#include <algorithm>

#include "../common/vec_math.h"

namespace strucfast {
namespace {

constexpr double kLog2Pi = 1.83787706640934548356;  // natural logarithm of 2 pi
// Elements that are brought together before the arithmetic, so that few dims fill a vector too.
constexpr int64_t kBlock = 512;

template <typename T>
SF_INLINE void gather(const T* from, const int64_t* strides, int64_t samples, int64_t dims, int64_t begin, int64_t size,
                      T* SF_RESTRICT to) {
  // Rows without a gap between them are one.
  if (strides[0] == dims * strides[1]) dims *= samples;
  int64_t i = begin / dims, d = begin % dims;
  for (int64_t done = 0; done < size; ++i, d = 0) {
    const int64_t count = std::min(dims - d, size - done);
    const T* row = from + i * strides[0] + d * strides[1];
    if (strides[1] == 1) {
      for (int64_t l = 0; l < count; ++l) to[done + l] = row[l];
    } else {
      for (int64_t l = 0; l < count; ++l) to[done + l] = row[l * strides[1]];
    }
    done += count;
  }
}

template <typename T>
struct Gathered {
  alignas(64) T z[kBlock], mean[kBlock], logvar[kBlock];

  SF_INLINE void fill(const OwnPosteriors<T>& op, int64_t begin, int64_t size) {
    gather(op.z, op.z_strides, op.samples, op.dims, begin, size, z);
    gather(op.mean, op.mean_strides, op.samples, op.dims, begin, size, mean);
    gather(op.logvar, op.logvar_strides, op.samples, op.dims, begin, size, logvar);
  }
};

template <typename T>
SF_INLINE OwnSums sums(const OwnPosteriors<T>& op) {
  const int64_t elements = op.samples * op.dims;
  const double constant = kLog2Pi * static_cast<double>(elements);
  OwnSums total{constant, constant};
  Gathered<T> at;
  for (int64_t begin = 0; begin < elements; begin += kBlock) {
    const int64_t size = std::min(kBlock, elements - begin);
    at.fill(op, begin, size);
    T posterior = 0, prior = 0;
#pragma omp simd reduction(+ : posterior, prior)
    for (int64_t l = 0; l < size; ++l) {
      const T u = (at.z[l] - at.mean[l]) * vexp(T(-0.5) * at.logvar[l]);
      posterior += u * u + at.logvar[l];
      prior += at.z[l] * at.z[l];
    }
    total.posterior += posterior;
    total.prior += prior;
  }
  return {-0.5 * total.posterior, -0.5 * total.prior};
}

template <typename T>
SF_INLINE double sum(const T* values, int64_t size) {
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size);
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += values[i];
    total += part;
  }
  return total;
}

template <typename T>
SF_INLINE void backward(const OwnPosteriors<T>& op, T posterior, T prior, T* SF_RESTRICT dz, T* SF_RESTRICT dmean,
                        T* SF_RESTRICT dlogvar) {
  const int64_t elements = op.samples * op.dims;
  Gathered<T> at;
  for (int64_t begin = 0; begin < elements; begin += kBlock) {
    const int64_t size = std::min(kBlock, elements - begin);
    at.fill(op, begin, size);
    // A term without weight adds nothing, even where its value is infinite.
    if (prior != T(0) && dz != nullptr) {
#pragma omp simd
      for (int64_t l = 0; l < size; ++l) dz[begin + l] -= prior * at.z[l];
    }
    if (posterior == T(0)) continue;
#pragma omp simd
    for (int64_t l = 0; l < size; ++l) {
      const T inverse = vexp(T(-0.5) * at.logvar[l]);
      const T u = (at.z[l] - at.mean[l]) * inverse;
      at.mean[l] = posterior * u * inverse;
      at.logvar[l] = T(0.5) * posterior * (u * u - T(1));
    }
    if (dz != nullptr) {
#pragma omp simd
      for (int64_t l = 0; l < size; ++l) dz[begin + l] -= at.mean[l];
    }
    if (dmean != nullptr) {
#pragma omp simd
      for (int64_t l = 0; l < size; ++l) dmean[begin + l] += at.mean[l];
    }
    if (dlogvar != nullptr) {
#pragma omp simd
      for (int64_t l = 0; l < size; ++l) dlogvar[begin + l] += at.logvar[l];
    }
  }
}

SF_CLONES OwnSums sums_of(const OwnPosteriors<float>& op) { return sums(op); }
SF_CLONES OwnSums sums_of(const OwnPosteriors<double>& op) { return sums(op); }
SF_CLONES double sum_clone(const float* values, int64_t size) { return sum(values, size); }
SF_CLONES double sum_clone(const double* values, int64_t size) { return sum(values, size); }
SF_CLONES void backward_clone(const OwnPosteriors<float>& op, float posterior, float prior, float* dz, float* dmean,
                              float* dlogvar) {
  backward(op, posterior, prior, dz, dmean, dlogvar);
}
SF_CLONES void backward_clone(const OwnPosteriors<double>& op, double posterior, double prior, double* dz,
                              double* dmean, double* dlogvar) {
  backward(op, posterior, prior, dz, dmean, dlogvar);
}

}  // namespace

template <typename T>
OwnSums own_sums(const OwnPosteriors<T>& op) {
  return sums_of(op);
}

template <typename T>
double sum_of(const T* values, int64_t size) {
  return sum_clone(values, size);
}

template <typename T>
void own_backward(const OwnPosteriors<T>& op, T posterior, T prior, T* dz, T* dmean, T* dlogvar) {
  backward_clone(op, posterior, prior, dz, dmean, dlogvar);
}

#define KL_TERMS_INSTANTIATE(T)                      \
  template OwnSums own_sums(const OwnPosteriors<T>&); \
  template double sum_of(const T*, int64_t);         \
  template void own_backward(const OwnPosteriors<T>&, T, T, T*, T*, T*);
KL_TERMS_INSTANTIATE(float)
KL_TERMS_INSTANTIATE(double)

}  // namespace strucfast
