#pragma once
#include <cstdint>

#include "../common/activation.h"
#include "tile.h"

// y = scale * act(weight * xhat + bias) + shift with xhat over groups of channels and all pixels, and its backward.
// The variance is biased, eps lies inside the root; only mean and rstd are kept for the backward.
namespace strucfast {

// x is (N, C, S) contiguous, or (N, S, C) when channels_last; per-pixel scale and shift and the gradients share its
// layout. Absent parameters have no data.
struct GroupNormModulate {
  DType dtype;
  int64_t samples, channels, pixels, groups;
  bool channels_last;
  int64_t channel_blocks;  // into how many units a channels-last sample is cut, each of whole groups
  Activation activation;
  double eps;  // forward only
  const void* x;
  Parameter weight, bias, scale, shift;
  void* y;  // forward only
  void *mean, *rstd;  // (N, G) of the compute type, written by the forward
  const void* grad;  // backward only, with the gradients that were asked for
  void* dx;
  void *dweight_parts, *dbias_parts;  // (N, C) of the compute type, to be summed over the samples
  Gradient dscale, dshift;
};

// Units of work are independent, and what a unit computes does not depend on how the units are spread over threads.
int64_t group_norm_modulate_units(const GroupNormModulate& m);

// Bytes of scratch memory that one call for a range of units needs.
int64_t group_norm_modulate_workspace(const GroupNormModulate& m, bool backward);

void group_norm_modulate_forward(const GroupNormModulate& m, int64_t begin, int64_t end, void* workspace);
void group_norm_modulate_backward(const GroupNormModulate& m, int64_t begin, int64_t end, void* workspace);

// Sums (N, C) parts of the compute type over the samples into a (C) gradient.
void group_norm_modulate_sum(const GroupNormModulate& m, const void* parts, Gradient to);

}  // namespace strucfast
