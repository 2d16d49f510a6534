// The activations of math/activation.h for vectors. Floats: exp by range reduction and its series, erf by a quotient of
// polynomials, everything else from these (elu to 1 ulp, silu to 2.4, gelu to 3e-7 of max(1, |v|)); doubles: the C
// library, lane by lane. Inlined are the ones without exp or erf, and silu where a kernel is its own (Follow::Silu in
// plane_loops.h); the others are a call per vector, so that there are few copies.
#pragma once
#include "../../math/activation.h"
#include "vector.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class V>
TFN_INLINE V relu(V v) {
  return v < 0 ? V{} : v;
}

// A NaN stays.
TFN_INLINE Floats within(Floats x, float least, float most) {
#if TFN_VECTOR_BYTES == 32
  return (Floats)_mm256_min_ps((__m256)(Floats{} + most), _mm256_max_ps((__m256)(Floats{} + least), (__m256)x));
#elif TFN_VECTOR_BYTES == 64
  const __m512 low = (__m512)(Floats{} + least), high = (__m512)(Floats{} + most);
  return (Floats)_mm512_maskz_min_ps(__mmask16(-1), high, _mm512_maskz_max_ps(__mmask16(-1), low, (__m512)x));
#else
  x = x < least ? Floats{} + least : x;
  return x > most ? Floats{} + most : x;
#endif
}

// x = n ln 2 + r, exp(r) = 1 + fraction; the last bits of `shifted` are those of the integer n.
struct Reduced {
  Floats shifted, fraction;
};
TFN_INLINE Reduced reduced(Floats x) {
  const Floats shifted = x * 1.44269504088896f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Floats n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693145751953125f - n * 1.428606765330187e-6f;  // ln 2 in two parts
  Floats p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  return {shifted, p * r * r + r};
}
// exp(x) - 1 = scale * fraction + (scale - 1), scale = first * second, both powers of two: together they reach beyond
// a float's exponents, where exp is 0, subnormal or infinity.
struct ExpParts {
  Floats first, second, fraction;
};
TFN_INLINE ExpParts exp_parts(Floats x) {
  const auto [shifted, fraction] = reduced(within(x, -104.0f, 89.0f));
  const Ints power = (Ints)shifted - 0x4b400000, half = power >> 1;
  return {(Floats)((half + 127) << 23), (Floats)((power - half + 127) << 23), fraction};
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
// 1 + exp(x): infinity where n is 128; where exp has no exponent of its own any more, 1.
TFN_INLINE Floats one_plus_exponential(Floats x) {
  const auto [shifted, fraction] = reduced(within(x, -87.0f, 89.0f));
  return (fraction + 1.0f) * (Floats)(((Ints)shifted << 23) + (127 << 23)) + 1.0f;
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

TFN_INLINE Doubles one_plus_exponential(Doubles v) { return exponential(v) + 1; }

template <class V>
TFN_INLINE V logistic(V v) {
  return 1 / one_plus_exponential(-v);
}
template <class V>
TFN_INLINE V silu(V v) {
  return v / one_plus_exponential(-v);
}
template <class V>
TFN_INLINE V silu_slope(V v) {
  const V s = logistic(v);
  return s * (v * (1 - s) + 1);
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
      return silu(v);
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
    case Activation::Silu:
      return silu_slope(v);
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
