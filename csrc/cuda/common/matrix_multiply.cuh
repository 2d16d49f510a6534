// A warp multiplies matrices in shared memory: c (16 M x 8 N) += a (16 M x 8 S) b (8 S x 8 N).
//
//   lane = 4 g + t holds of each 16 x 8 x 8 product      a  rows g, g + 8        columns t, t + 4
//                                                        b  rows t, t + 4        column g
//                                                        c  rows g, g + 8        columns 2 t, 2 t + 1
//
// float     tensor cores know tf32, 11 bits of a float's 24. Each operand is cut in two, high = tf32(v) and
//           low = tf32(v - high), which together keep 22 bits; low * high + high * low + high * high leaves out 2^-22
//           of a product. Tensor cores round sums towards zero: over a long sum that would be a bias, not noise. So
//           each product of 8 terms starts from zero, and is added to c by an ordinary addition.
// double    four products of 8 x 8 x 4, whose parts lie just as the quarters of 16 x 8 x 8 do.
//
// Infinities become NaN in float (infinity - infinity in `low`); NaN stays NaN.
//
// Shared memory: an operand lies `Along` k (k fastest, a row or column of the product after the other) or `Across` it.
// pitch_of() sets the rows of both apart so that the 32 lanes of a load meet 32 banks (16 lanes, two banks each):
//
//     Along    lane reads g * pitch + t     pitch % 32 == 4                 (double: pitch % 16 == 4)
//     Across   lane reads t * pitch + g     pitch % 32 == 8                 (double: pitch % 16 == 4)
#pragma once
#include "port.h"

namespace torchfastnorm::cuda {

enum class Operand { Along, Across };

// Of rows of `length`, a multiple of 16, elements of type A.
template <class A>
constexpr int pitch_of(Operand operand, int length) {
  const int period = int(128 / sizeof(A)), wanted = sizeof(A) == 4 && operand == Operand::Across ? 8 : 4;
  return (length + period - 1 - wanted) / period * period + wanted;
}

#if defined(TORCHFASTNORM_SIM)

namespace simulated {

inline void split(const float v, float& high, float& low) {  // see the device's
  high = __uint_as_float((__float_as_uint(v) + 0x1000u) & 0xffffe000u);
  low = __uint_as_float(__float_as_uint(v - high) & 0xffffe000u);
}
inline float towards_zero(double v) {
  const float nearest = float(v);
  return std::abs(double(nearest)) > std::abs(v) ? std::nextafterf(nearest, 0.0f) : nearest;
}

template <class A, int M, int N>
struct Fragments {  // of one lane
  A (*c)[N][4];
  const A (*a)[4];
  const A (*b)[2];
};

// The product of all lanes' parts, each lane's c in place.
template <class A, int M, int N>
void multiply(void* const (&lanes)[32]) {
  const auto lane = [&](int g, int t) -> Fragments<A, M, N>& {
    return *static_cast<Fragments<A, M, N>*>(lanes[4 * g + t]);
  };
  A a[16 * M][8], b[8][8 * N];
  for (int m = 0; m < 16 * M; ++m)
    for (int k = 0; k < 8; ++k) a[m][k] = lane(m % 8, k % 4).a[m / 16][m / 8 % 2 + k / 4 * 2];
  for (int n = 0; n < 8 * N; ++n)
    for (int k = 0; k < 8; ++k) b[k][n] = lane(n % 8, k % 4).b[n / 8][k / 4];
  [[maybe_unused]] A a_low[16 * M][8], b_low[8][8 * N];
  if constexpr (sizeof(A) == 4) {
    for (int k = 0; k < 8; ++k) {
      for (int m = 0; m < 16 * M; ++m) split(a[m][k], a[m][k], a_low[m][k]);
      for (int n = 0; n < 8 * N; ++n) split(b[k][n], b[k][n], b_low[k][n]);
    }
  }
  for (int m = 0; m < 16 * M; ++m)
    for (int n = 0; n < 8 * N; ++n) {
      A& c = lane(m % 8, n % 8 / 2).c[m / 16][n / 8][m / 8 % 2 * 2 + n % 2];
      if constexpr (sizeof(A) == 8) {
        for (int k = 0; k < 8; ++k) c += a[m][k] * b[k][n];
      } else {
        double sum[3] = {0, 0, 0};
        for (int k = 0; k < 8; ++k) {
          sum[0] += double(a_low[m][k]) * double(b[k][n]);
          sum[1] += double(a[m][k]) * double(b_low[k][n]);
          sum[2] += double(a[m][k]) * double(b[k][n]);
        }
        c += towards_zero(towards_zero(towards_zero(sum[0]) + sum[1]) + sum[2]);
      }
    }
}

}  // namespace simulated

template <class A, int M, int N>
void multiply_add(A (&c)[M][N][4], const A (&a)[M][4], const A (&b)[N][2]) {
  simulated::Fragments<A, M, N> mine{c, a, b};
  cudasim::warp_collective(&mine, simulated::multiply<A, M, N>, "multiply_add");
}

#else

// Rounds with a carry into the bits that stay, ties away from zero, which is cvt.rna in half the instructions: that
// looks for NaN, whose carry may wipe it out of `high` here, while it stays in `low`. Tensor cores ignore the last 13
// bits, so that `low` needs no rounding of its own.
__device__ __forceinline__ void split(float v, uint32_t& high, uint32_t& low) {
  high = (__float_as_uint(v) + 0x1000u) & 0xffffe000u;
  low = __float_as_uint(v - __uint_as_float(high));
}
__device__ __forceinline__ void tensor_product(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void tensor_product(double& c0, double& c1, double a, double b) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c0), "+d"(c1)
      : "d"(a), "d"(b));
}

template <int M, int N>
__device__ __forceinline__ void multiply_add(float (&c)[M][N][4], const float (&a)[M][4], const float (&b)[N][2]) {
  uint32_t a_high[M][4], a_low[M][4];
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a[m][i], a_high[m][i], a_low[m][i]);
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    uint32_t b_high[2], b_low[2];
    split(b[n][0], b_high[0], b_low[0]);
    split(b[n][1], b_high[1], b_low[1]);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      tensor_product(product, a_low[m], b_high);
      tensor_product(product, a_high[m], b_low);
      tensor_product(product, a_high[m], b_high);
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] += product[i];
    }
  }
}

template <int M, int N>
__device__ __forceinline__ void multiply_add(double (&c)[M][N][4], const double (&a)[M][4], const double (&b)[N][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      tensor_product(c[m][n][0], c[m][n][1], a[m][0], b[n][0]);
      tensor_product(c[m][n][2], c[m][n][3], a[m][1], b[n][0]);
      tensor_product(c[m][n][0], c[m][n][1], a[m][2], b[n][1]);
      tensor_product(c[m][n][2], c[m][n][3], a[m][3], b[n][1]);
    }
  }
}

#endif

// Steps first, first + stride, ... below `steps` of 8 terms each; all 32 lanes call. a, b: the warp's first row and
// column, at k = 0.
template <Operand OPERAND_A, Operand OPERAND_B, int PITCH_A, int PITCH_B, class A, int M, int N>
__device__ __forceinline__ void multiply_shared(A (&c)[M][N][4], const A* a, const A* b, int first, int steps,
                                                int stride) {
  constexpr int row_a = OPERAND_A == Operand::Along ? PITCH_A : 1, k_a = OPERAND_A == Operand::Along ? 1 : PITCH_A;
  constexpr int col_b = OPERAND_B == Operand::Along ? PITCH_B : 1, k_b = OPERAND_B == Operand::Along ? 1 : PITCH_B;
  const int lane = recomputed(int(threadIdx.x)) % 32, g = lane / 4, t = lane % 4;
  a += g * row_a + (t + 8 * first) * k_a;
  b += g * col_b + (t + 8 * first) * k_b;
#pragma unroll 1
  for (int step = first; step < steps; step += stride) {
    A part_a[M][4], part_b[N][2];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part_a[m][i] = a[(16 * m + i % 2 * 8) * row_a + i / 2 * 4 * k_a];
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) part_b[n][i] = b[8 * n * col_b + i * 4 * k_b];
    }
    multiply_add(c, part_a, part_b);
    a += 8 * stride * k_a;
    b += 8 * stride * k_b;
  }
}

// Calls f(row, column, c, c of the next column) for each pair of neighbours that a lane holds.
template <class A, int M, int N, class F>
__device__ __forceinline__ void for_each_pair(A (&c)[M][N][4], F f) {
  const int lane = recomputed(int(threadIdx.x)) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      f(16 * m + g, 8 * n + 2 * t, c[m][n][0], c[m][n][1]);
      f(16 * m + g + 8, 8 * n + 2 * t, c[m][n][2], c[m][n][3]);
    }
  }
}

}  // namespace torchfastnorm::cuda
