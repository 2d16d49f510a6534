// The activations that norms of feature maps fuse, and their derivatives, once for both backends: scalar functions of
// float or double. As torch.nn.functional's with their defaults: leaky_relu's slope 0.01, elu's alpha 1.
//
//   relu        max(v, 0)                       a NaN stays a NaN; derivative 0 at 0
//   leaky_relu  v > 0 ? v : 0.01 v              derivative 0.01 at 0
//   elu         v > 0 ? v : exp(v) - 1          derivative exp(v) for v <= 0
//   silu        v * sigmoid(v)                  sigmoid(v) * (1 + v * (1 - sigmoid(v)))
//   gelu        v * Phi(v), Phi(v) = (1 + erf(v / sqrt(2))) / 2          Phi(v) + v * phi(v)
//   gelu_tanh   v * (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (v + 0.044715 v^3)
#pragma once
#include <cmath>

#include "../interface/types.h"
#include "host_device.h"

namespace torchfastnorm {

template <class T>
TFN_HOST_DEVICE T sigmoid(T v) {
  using std::exp;  // else a host's is the one for double
  return quotient(T(1), T(1) + exp(-v));
}

constexpr double leaky_slope = 0.01;
constexpr double sqrt_half = 0.70710678118654752440;         // 1 / sqrt(2)
constexpr double sqrt_two_over_pi = 0.79788456080286535588;  // sqrt(2 / pi)
constexpr double inverse_sqrt_two_pi = 0.39894228040143267794;
constexpr double gelu_cubic = 0.044715;

template <class T>
TFN_HOST_DEVICE T activate(Activation activation, T v) {
  using std::erf, std::exp, std::expm1, std::tanh;
  switch (activation) {
    case Activation::Relu:
      return v < T(0) ? T(0) : v;
    case Activation::LeakyRelu:
      return v > T(0) ? v : v * T(leaky_slope);
    case Activation::Elu:
      return v > T(0) ? v : expm1(v);
    case Activation::Silu:
      return v * sigmoid(v);
    case Activation::Gelu:
      return v * T(0.5) * (T(1) + erf(v * T(sqrt_half)));
    case Activation::GeluTanh:
      return v * T(0.5) * (T(1) + tanh(T(sqrt_two_over_pi) * (v + T(gelu_cubic) * v * v * v)));
    default:
      return v;
  }
}

// d activate(v) / dv
template <class T>
TFN_HOST_DEVICE T activation_slope(Activation activation, T v) {
  using std::erf, std::exp, std::tanh;
  switch (activation) {
    case Activation::Relu:
      return v > T(0) ? T(1) : T(0);
    case Activation::LeakyRelu:
      return v > T(0) ? T(1) : T(leaky_slope);
    case Activation::Elu:
      return v > T(0) ? T(1) : exp(v);
    case Activation::Silu: {
      const T s = sigmoid(v);
      return s * (T(1) + v * (T(1) - s));
    }
    case Activation::Gelu:
      return T(0.5) * (T(1) + erf(v * T(sqrt_half))) + v * T(inverse_sqrt_two_pi) * exp(-v * v * T(0.5));
    case Activation::GeluTanh: {
      const T inner = T(sqrt_two_over_pi) * (v + T(gelu_cubic) * v * v * v);
      const T t = tanh(inner);
      return T(0.5) * (T(1) + t) +
             T(0.5) * v * (T(1) - t * t) * T(sqrt_two_over_pi) * (T(1) + T(3 * gelu_cubic) * v * v);
    }
    default:
      return T(1);
  }
}

}  // namespace torchfastnorm
