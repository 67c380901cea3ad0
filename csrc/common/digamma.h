#pragma once
#include <cmath>

namespace strucfast {

// Derivative of lgamma for x > 0 (NaN otherwise), error some 1e-15: recurrence up to 10, then the asymptotic series.
inline double digamma(double x) {
  if (!(x > 0)) return std::nan("");
  double below = 0;
  for (; x < 10; x += 1) below += 1 / x;
  const double t = 1 / (x * x);
  double series = t * (-1.0 / 12);
  series = t * (691.0 / 32760 + series);
  series = t * (-1.0 / 132 + series);
  series = t * (1.0 / 240 + series);
  series = t * (-1.0 / 252 + series);
  series = t * (1.0 / 120 + series);
  series = t * (-1.0 / 12 + series);
  return std::log(x) - 0.5 / x + series - below;
}

}  // namespace strucfast
