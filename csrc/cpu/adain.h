#pragma once
#include <cstdint>

#include "tile.h"

// y = scale * xhat + shift with xhat over the pixels of each sample and channel, and its backward. The variance is
// biased, eps lies inside the root. The mean is kept relative to the slice's first pixel, so that a large offset costs
// the backward no digits either.
namespace strucfast {

// x is (N, C, S) contiguous, or (N, S, C) when channels_last; per-pixel parameters and gradients share its layout.
struct AdaIN {
  DType dtype;
  int64_t samples, channels, pixels;
  bool channels_last;
  int64_t channel_blocks;  // into how many units a channels-last sample is cut
  double eps;  // forward only
  const void* x;
  Parameter scale, shift;  // backward: of the shift only per_pixel
  void* y;  // forward only
  void *mean, *rstd;  // (N, C) of the compute type, written by the forward
  const void* grad;  // backward only, with the gradients that were asked for
  void* dx;
  Gradient dscale, dshift;
};

// Units of work are independent, and what a unit computes does not depend on how the units are spread over threads.
int64_t adain_units(const AdaIN& m);

void adain_forward(const AdaIN& m, int64_t begin, int64_t end);
void adain_backward(const AdaIN& m, int64_t begin, int64_t end);

}  // namespace strucfast
