// The activations of math/activation.h for vectors. Floats: exp by range reduction and its series, erf by a quotient of
// polynomials, everything else from these (elu to 1 ulp, silu to 2.4, gelu to 3e-7 of max(1, |v|)); doubles: the C
// library, lane by lane. Never inlined but for the ones without exp or erf: a call per vector is little beside them,
// and there are few copies.
#pragma once
#include "../../math/activation.h"
#include "vector.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class V>
TFN_INLINE V relu(V v) {
  return v < 0 ? V{} : v;
}

// exp(x) - 1 = scale * fraction + (scale - 1), scale = first * second, both powers of two: together they reach beyond
// a float's exponents, where exp is 0, subnormal or infinity.
struct ExpParts {
  Floats first, second, fraction;
};
TFN_INLINE ExpParts exp_parts(Floats x) {
  x = x < -104.0f ? Floats{} - 104.0f : x;
  x = x > 89.0f ? Floats{} + 89.0f : x;
  const Floats shifted = x * 1.44269504088896f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer, in the last bits
  const Floats n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693145751953125f - n * 1.428606765330187e-6f;  // ln 2 in two parts
  Floats p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  const Ints power = (Ints)shifted - 0x4b400000, half = power >> 1;
  return {(Floats)((half + 127) << 23), (Floats)((power - half + 127) << 23), p * r * r + r};
}
TFN_INLINE Floats exponential(Floats x) {
  const ExpParts parts = exp_parts(x);
  return (parts.fraction + 1.0f) * parts.first * parts.second;
}
TFN_INLINE Floats exponential_minus_one(Floats x) {
  const ExpParts parts = exp_parts(x);
  const Floats scale = parts.first * parts.second;
  return scale * parts.fraction + (scale - 1.0f);
}
// A quotient of polynomials, good to some 2e-7 of the value; 1 beyond 4 to within a float's rounding.
TFN_INLINE Floats error_function(Floats x) {
  x = x < -4.0f ? Floats{} - 4.0f : x;
  x = x > 4.0f ? Floats{} + 4.0f : x;
  const Floats s = x * x;
  Floats p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  Floats q = s * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;
  return x * p / q;
}

// f of every lane
template <double F(double)>
TFN_INLINE Doubles each(Doubles v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = F(v[i]);
  return v;
}
TFN_INLINE Doubles exponential(Doubles v) { return each<::exp>(v); }
TFN_INLINE Doubles exponential_minus_one(Doubles v) { return each<::expm1>(v); }
TFN_INLINE Doubles error_function(Doubles v) { return each<::erf>(v); }

template <class V>
TFN_INLINE V logistic(V v) {
  return 1 / (exponential(-v) + 1);
}
// (1 + tanh(u)) / 2 = logistic(2 u)
template <class V, class A>
TFN_INLINE V gelu_tanh_gate(V v, A) {
  return logistic(V(v * A(2 * sqrt_two_over_pi) * (v * v * A(gelu_cubic) + 1)));
}
template <class V, class A>
TFN_INLINE V normal_distribution(V v, A) {
  return error_function(V(v * A(sqrt_half))) * A(0.5) + A(0.5);
}

template <class V, class A>
__attribute__((noinline)) V activate_smooth(Activation activation, V v, A one) {
  switch (activation) {
    case Activation::Elu:
      return v > 0 ? v : exponential_minus_one(v);
    case Activation::Silu:
      return v / (exponential(-v) + 1);
    case Activation::Gelu:
      return v * normal_distribution(v, one);
    default:
      return v * gelu_tanh_gate(v, one);
  }
}

template <class V, class A>
__attribute__((noinline)) V slope_of_smooth(Activation activation, V v, A one) {
  switch (activation) {
    case Activation::Elu:
      return v > 0 ? V{} + one : exponential(v);
    case Activation::Silu: {
      const V s = logistic(v);
      return s * (v * (1 - s) + 1);
    }
    case Activation::Gelu:
      return normal_distribution(v, one) + v * A(inverse_sqrt_two_pi) * exponential(V(v * v * A(-0.5)));
    default: {
      const V s = gelu_tanh_gate(v, one);
      return s + v * s * (1 - s) * A(2 * sqrt_two_over_pi) * (v * v * A(3 * gelu_cubic) + 1);
    }
  }
}

template <class A>
TFN_INLINE Vector<A> activated(Activation activation, Vector<A> v) {
  if (activation == Activation::None) return v;
  if (activation == Activation::Relu) return relu(v);
  if (activation == Activation::LeakyRelu) return v > 0 ? v : v * A(leaky_slope);
  return activate_smooth(activation, v, A(1));
}
template <class A>
TFN_INLINE Vector<A> slope(Activation activation, Vector<A> v) {
  const Vector<A> one = Vector<A>{} + A(1);
  if (activation == Activation::None) return one;
  if (activation == Activation::Relu) return v > 0 ? one : Vector<A>{};
  if (activation == Activation::LeakyRelu) return v > 0 ? one : one * A(leaky_slope);
  return slope_of_smooth(activation, v, A(1));
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
