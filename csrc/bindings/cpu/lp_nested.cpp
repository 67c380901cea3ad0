#include "../../cpu/lp_nested.h"

#include <torch/headeronly/core/Dispatch_v2.h>

#include <cmath>
#include <tuple>

#include "../../common/digamma.h"
#include "common.h"

namespace {

using strucfast::LpKind;
using strucfast::LpNested;
using strucfast::LpSubspace;
using strucfast::bindings::empty;
using strucfast::bindings::no_tensor;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// A () or (K,) parameter, float32 or float64, repeated to `count` values: normalisers are computed in double.
std::vector<double> values(const Tensor& t, int64_t count) {
  std::vector<double> out(count);
  const int64_t step = t.dim() == 0 ? 0 : t.stride(0);
  const bool wide = t.scalar_type() == ScalarType::Double;
  for (int64_t k = 0; k < count; ++k) {
    out[k] = wide ? static_cast<const double*>(t.const_data_ptr())[k * step]
                  : static_cast<const float*>(t.const_data_ptr())[k * step];
  }
  return out;
}

void store(const Tensor& t, int64_t k, double value) {
  if (t.scalar_type() == ScalarType::Double) {
    static_cast<double*>(t.mutable_data_ptr())[k] = value;
  } else {
    static_cast<float*>(t.mutable_data_ptr())[k] = static_cast<float>(value);
  }
}

struct Parameters {
  Parameters(const Tensor& p0, const Tensor& p, const Tensor& scale, int64_t count)
      : root(values(p0, 1)[0]), p(values(p, count)), scale(values(scale, count)) {}
  double root;
  std::vector<double> p, scale;
};

double log_normaliser(const Sizes& sizes, const Parameters& in) {
  double total = 0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    const double n = static_cast<double>(sizes[k]), share = n / in.root;
    total -= std::lgamma(1 + share) + n * std::log(2.0) + share * std::log(in.scale[k]);
    // A single coordinate: the two cancel, and with them p.
    if (sizes[k] > 1) total += std::lgamma(1 + n / in.p[k]) - n * std::lgamma(1 + 1 / in.p[k]);
  }
  return total;
}

template <typename T>
std::vector<LpSubspace<T>> subspaces(const Sizes& sizes, const Parameters& in) {
  std::vector<LpSubspace<T>> out(sizes.size());
  int64_t offset = 0;
  for (size_t k = 0; k < sizes.size(); ++k) {
    LpKind kind = LpKind::kGeneral;
    if (sizes[k] == 1 || in.p[k] == 1) kind = LpKind::kOne;
    if (sizes[k] > 1 && in.p[k] == 2) kind = LpKind::kTwo;
    out[k] = {offset, sizes[k], kind, static_cast<T>(in.p[k]), static_cast<T>(1 / in.scale[k])};
    offset += sizes[k];
  }
  return out;
}

// Rows of unit stride, whatever lies between them.
Tensor with_unit_rows(const Tensor& z) {
  return z.size(1) == 1 || z.stride(1) == 1 ? z : torch::stable::contiguous(z);
}

template <typename T>
LpNested<T> problem(const Tensor& z, const Sizes& sizes, const std::vector<LpSubspace<T>>& subspaces, double root) {
  LpNested<T> op{};
  op.rows = z.size(0);
  op.dims = z.size(1);
  op.num_subspaces = static_cast<int64_t>(sizes.size());
  op.largest = *std::max_element(sizes.begin(), sizes.end());
  op.subspaces = subspaces.data();
  op.root = static_cast<T>(root);
  op.z = static_cast<const T*>(z.const_data_ptr());
  op.z_stride = z.stride(0);
  return op;
}

template <typename T, typename F>
void run(const LpNested<T>& op, const F& kernel) {
  strucfast::bindings::parallel_units(lp_nested_units(op), op.rows * op.dims, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> scratch(new T[lp_nested_scratch(op)]);
    kernel(op, begin, end, scratch.get());
  });
}

Tensor lp_nested(const Tensor& z_in, Sizes sizes, const Tensor& p0, const Tensor& p, const Tensor& scale) {
  const Tensor z = with_unit_rows(z_in);
  const Parameters parameters(p0, p, scale, static_cast<int64_t>(sizes.size()));
  Tensor out = empty({z.size(0)}, z.scalar_type());
  THO_DISPATCH_V2(z.scalar_type(), "lp_nested_log_prob", AT_WRAP([&] {
    const auto parts = subspaces<scalar_t>(sizes, parameters);
    auto op = problem<scalar_t>(z, sizes, parts, parameters.root);
    op.log_normaliser = static_cast<scalar_t>(log_normaliser(sizes, parameters));
    op.log_prob = static_cast<scalar_t*>(out.mutable_data_ptr());
    run(op, [](const auto&... arguments) { strucfast::lp_nested_forward(arguments...); });
  }), ScalarType::Float, ScalarType::Double);
  return out;
}

// The sums over all points, unit by unit: 2 + 2K of them.
std::vector<double> total(const std::vector<double>& sums, size_t count) {
  std::vector<double> out(count);
  for (size_t i = 0; i < sums.size(); ++i) out[i % count] += sums[i];
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lp_nested_backward(const Tensor& grad, const Tensor& z_in, Sizes sizes,
                                                              const Tensor& p0, const Tensor& p, const Tensor& scale,
                                                              int64_t mask) {
  const Tensor z = with_unit_rows(z_in);
  const int64_t count = static_cast<int64_t>(sizes.size());
  const Parameters in(p0, p, scale, count);
  Tensor dz = (mask & 1) ? empty({z.size(0), z.size(1)}, z.scalar_type()) : no_tensor(z.scalar_type());
  Tensor dp0 = (mask & 2) ? empty({}, p0.scalar_type()) : no_tensor(p0.scalar_type());
  Tensor dp = (mask & 4) ? empty({count}, p.scalar_type()) : no_tensor(p.scalar_type());
  const bool shared = scale.dim() == 0;
  Tensor dscale = (mask & 8) ? empty(shared ? Sizes{} : Sizes{count}, scale.scalar_type())
                             : no_tensor(scale.scalar_type());
  std::vector<double> sums;
  THO_DISPATCH_V2(z.scalar_type(), "lp_nested_log_prob_backward", AT_WRAP([&] {
    const auto parts = subspaces<scalar_t>(sizes, in);
    auto op = problem<scalar_t>(z, sizes, parts, in.root);
    op.grad = static_cast<const scalar_t*>(grad.const_data_ptr());
    op.grad_stride = grad.stride(0);
    op.entropy = (mask & 4) != 0;
    op.dz = (mask & 1) ? static_cast<scalar_t*>(dz.mutable_data_ptr()) : nullptr;
    if (mask & 14) sums.resize(lp_nested_units(op) * (2 + 2 * count));
    op.sums = sums.empty() ? nullptr : sums.data();
    run(op, [](const auto&... arguments) { strucfast::lp_nested_backward(arguments...); });
  }), ScalarType::Float, ScalarType::Double);
  if (!(mask & 14)) return {dz, dp0, dp, dscale};
  const std::vector<double> over = total(sums, 2 + 2 * count);
  double of_root = -over[1], of_shared = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double n = static_cast<double>(sizes[k]), power = in.p[k], s = in.scale[k], share = n / in.root;
    of_root += over[0] * share / in.root * (strucfast::digamma(1 + share) + std::log(s));
    double of_p = 0;
    if (sizes[k] > 1) {
      of_p = n * (strucfast::digamma(1 + 1 / power) - strucfast::digamma(1 + n / power)) * over[0];
      of_p = (of_p + in.root * over[2 + k]) / (power * power);
    }
    const double of_scale = (over[2 + count + k] - share * over[0]) / s;
    of_shared += of_scale;
    if (mask & 4) store(dp, k, of_p);
    if ((mask & 8) && !shared) store(dscale, k, of_scale);
  }
  if (mask & 2) store(dp0, 0, of_root);
  if ((mask & 8) && shared) store(dscale, 0, of_shared);
  return {dz, dp0, dp, dscale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(strucfast, CPU, m) {
  m.impl("_lp_nested_log_prob_cpp", TORCH_BOX(&lp_nested));
  m.impl("_lp_nested_log_prob_backward_cpp", TORCH_BOX(&lp_nested_backward));
}
