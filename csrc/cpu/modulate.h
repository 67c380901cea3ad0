#pragma once
#include <cstdint>

#include "tile.h"

// y = scale * x + shift, and its backward: dx = scale g, dscale = sum_s g x, dshift = sum_s g (per pixel: no sum).
namespace strucfast {

// x is (N, C, S) contiguous, or (N, S, C) when channels_last; per-pixel parameters and gradients share its layout.
struct Modulate {
  DType dtype;
  int64_t samples, channels, pixels;
  bool channels_last;
  int64_t channel_blocks;  // into how many units a channels-last sample is cut
  const void* x;
  Parameter scale, shift;
  void* y;  // forward only
  const void* grad;  // backward only, with the gradients that were asked for
  bool shift_per_pixel;
  void* dx;
  Gradient dscale, dshift;
};

// Units of work are independent, and what a unit computes does not depend on how the units are spread over threads.
int64_t modulate_units(const Modulate& m);
void modulate_forward(const Modulate& m, int64_t begin, int64_t end);
void modulate_backward(const Modulate& m, int64_t begin, int64_t end);

}  // namespace strucfast
