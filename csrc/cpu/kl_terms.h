#pragma once
#include <cstdint>

// What kl_terms needs beside the aggregate posterior's log-densities: sums over a batch, and the gradient of log q(z|x)
// and log N(z; 0, I). Torch-free; nothing here allocates or starts threads.
namespace strucfast {

template <typename T>
struct OwnPosteriors {
  int64_t samples, dims;
  const T *z, *mean, *logvar;  // (S, D) each: row i of mean and logvar is the posterior that drew sample i
  int64_t z_strides[2], mean_strides[2], logvar_strides[2];
};

struct OwnSums {
  double posterior, prior;
};

// Sums over the samples of log q(z|x) and log N(z; 0, I), in nats.
template <typename T>
OwnSums own_sums(const OwnPosteriors<T>& op);

template <typename T>
double sum_of(const T* values, int64_t size);

// Adds the gradients of posterior * sum log q(z|x) + prior * sum log N(z; 0, I) to contiguous (S, D), or null.
template <typename T>
void own_backward(const OwnPosteriors<T>& op, T posterior, T prior, T* dz, T* dmean, T* dlogvar);

}  // namespace strucfast
