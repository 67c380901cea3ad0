#pragma once
#include "common/activation.h"
#include "cuda/device.h"

// The activation, chosen when the kernel is compiled or when it runs.
namespace strucfast::cuda {

template <Activation kActivation>
struct FixedActivation {
  template <typename A>
  __device__ __forceinline__ ValueAndSlope<A> operator()(A u) const {
    return activate_with_slope<kActivation>(u);
  }
};

struct AnyActivation {
  Activation activation;
  template <typename A>
  __device__ __forceinline__ ValueAndSlope<A> operator()(A u) const {
    switch (activation) {
      case Activation::kMish: return activate_with_slope<Activation::kMish>(u);
      case Activation::kSilu: return activate_with_slope<Activation::kSilu>(u);
      case Activation::kRelu: return activate_with_slope<Activation::kRelu>(u);
      case Activation::kElu: return activate_with_slope<Activation::kElu>(u);
      case Activation::kTanh: return activate_with_slope<Activation::kTanh>(u);
      default: return {u, A(1)};
    }
  }
};

// Calls f with the activation: one copy of f's code per activation for vectors, one for all where elements go singly.
template <int V, typename F>
__device__ __forceinline__ void dispatch_activation(Activation activation, const F& f) {
  if constexpr (V == 1) {
    f(AnyActivation{activation});
  } else {
    switch (activation) {
      case Activation::kMish: return f(FixedActivation<Activation::kMish>());
      case Activation::kSilu: return f(FixedActivation<Activation::kSilu>());
      case Activation::kRelu: return f(FixedActivation<Activation::kRelu>());
      case Activation::kElu: return f(FixedActivation<Activation::kElu>());
      case Activation::kTanh: return f(FixedActivation<Activation::kTanh>());
      default: return f(FixedActivation<Activation::kIdentity>());
    }
  }
}

}  // namespace strucfast::cuda
