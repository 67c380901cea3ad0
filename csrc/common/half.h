#pragma once
#include <cstdint>
#include <cstring>

#include "simd.h"

// bfloat16 and float16 as plain bits, converted by integer operations only, so that the loops vectorise at every
// instruction level and no flush-to-zero mode can touch a float16 subnormal. Rounding: to nearest, ties to even.
namespace strucfast {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

SF_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

SF_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

SF_INLINE float load(const float& value) { return value; }
SF_INLINE double load(const double& value) { return value; }
SF_INLINE float load(const BFloat16& value) { return bits_to_float(static_cast<uint32_t>(value.bits) << 16); }

SF_INLINE float load(const Float16& value) {
  const uint32_t half = value.bits;
  const uint32_t shifted = (half & 0x7fffu) << 13;
  const uint32_t exponent = half & 0x7c00u;
  const uint32_t normal = shifted + (112u << 23);
  const uint32_t special = shifted + (224u << 23);
  // 2^-14 * 1.m - 2^-14 is the subnormal's value exactly.
  const uint32_t subnormal = float_to_bits(bits_to_float(shifted + (113u << 23)) - bits_to_float(113u << 23));
  const uint32_t magnitude = exponent == 0x7c00u ? special : (exponent == 0u ? subnormal : normal);
  return bits_to_float(magnitude | ((half & 0x8000u) << 16));
}

SF_INLINE void store(float* to, float value) { *to = value; }
SF_INLINE void store(double* to, double value) { *to = value; }

SF_INLINE void store(BFloat16* to, float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // Rounding could carry a NaN's payload into the exponent, so a NaN is only cut off and made quiet.
  const uint32_t quiet = (bits >> 16) | 0x40u;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

SF_INLINE void store(Float16* to, float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 aligns the last kept bit with the last bit of a float16 subnormal; the addition rounds to even.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to->bits = static_cast<uint16_t>(sign | (magnitude >= (143u << 23) ? special : finite));
}

}  // namespace strucfast
