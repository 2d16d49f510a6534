// Products of panels and matrices (whitening_kernels.h), a tile of results at a time, held in registers.
//
//   broadcast   tile[r][c] += sum over k of left[r, k] * right[k][c]      c along vectors: an element of left, which
//   may be
//                                                                         strided both ways, times vectors of right
//   dot         tile[r][c]  = sum over k of left[r][k] * right[c][k]      k along vectors, which are added up at the
//   end
#pragma once
#include "whitening_panels.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// With the operands they fill the registers: 32 of 64 bytes, else 16.
constexpr int kTileRows = 6, kTileVectors = TFN_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kDotRows = TFN_VECTOR_BYTES == 64 ? 4 : 2, kDotColumns = 4;

// body(first row, first column, rows, vectors), the last two as constants, for the tiles of a matrix, of VECTORS at
// most; columns, which are counted to a whole vector, outermost.
template <class A, int VECTORS = kTileVectors, class Body>
TFN_INLINE void for_tiles(int64_t rows, int64_t columns, Body body) {
  for (int64_t column = 0; column < columns; column += VECTORS * kLanes<A>)
    by_count<VECTORS>((columns - column + kLanes<A> - 1) / kLanes<A>, [&](auto vectors) {
      for (int64_t row = 0; row < rows; row += kTileRows)
        by_count<kTileRows>(rows - row, [&](auto some) { body(row, column, some, vectors); });
    });
}
template <class A>
inline int64_t tile_count(int64_t rows, int64_t columns) {
  return ((rows + kTileRows - 1) / kTileRows) * ((columns + kTileVectors * kLanes<A> - 1) / (kTileVectors * kLanes<A>));
}

template <class A>
struct Strided {
  const A* data;
  int64_t row, step;  // from a row to the next, and along it
};

template <class A, int ROWS, int VECTORS>
struct Tile {
  Vector<A> sums[ROWS][VECTORS];

  // f(row, offset of a vector's first column, vector)
  template <class F>
  TFN_INLINE void each(F f) {
    repeat<ROWS>([&](auto r) __attribute__((always_inline)) {
      repeat<VECTORS>([&](auto c) __attribute__((always_inline)) { f(int64_t(r), c * kLanes<A>, sums[r][c]); });
    });
  }
  // Zeros, or what an earlier part of the sums left in `from`.
  TFN_INLINE void begin(bool earlier, const A* from, int64_t row) {
    if (earlier)
      each([=](int64_t r, int64_t c, Vector<A>& v)
               __attribute__((always_inline)) { v = load(from + r * row + c, Whole{}); });
    else
      each([](int64_t, int64_t, Vector<A>& v) __attribute__((always_inline)) { v = Vector<A>{}; });
  }
  TFN_INLINE void add_products(Strided<A> left, const A* right, int64_t right_row, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k, left.data += left.step, right += right_row) {
      Vector<A> columns[VECTORS];
      repeat<VECTORS>([&](auto c)
                          __attribute__((always_inline)) { columns[c] = load(right + c * kLanes<A>, Whole{}); });
      repeat<ROWS>([&](auto r) __attribute__((always_inline)) {
        const Vector<A> element = splat(left.data[r * left.row]);
        repeat<VECTORS>([&](auto c) __attribute__((always_inline)) { sums[r][c] += element * columns[c]; });
      });
    }
  }
  TFN_INLINE void end(A* to, int64_t row) {
    each([=](int64_t r, int64_t c, Vector<A> v)
             __attribute__((always_inline)) { store(to + r * row + c, v, Whole{}); });
  }
};

// Within every 16 bytes: the sums of neighbouring lanes of a, then those of b.
#if TFN_VECTOR_BYTES == 64
TFN_INLINE Floats add_neighbours(Floats a, Floats b) {
  return (Floats)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88) + (Floats)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xdd);
}
#elif TFN_VECTOR_BYTES == 32
TFN_INLINE Floats add_neighbours(Floats a, Floats b) {
  return (Floats)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88) + (Floats)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
}
#else
TFN_INLINE Floats add_neighbours(Floats a, Floats b) {
  return Floats{a[0], a[2], b[0], b[2]} + Floats{a[1], a[3], b[1], b[3]};
}
#endif

// to[i] = the sum of the lanes of v[i]
TFN_INLINE void store_totals(double* to, const Doubles (&v)[kDotColumns]) {
  for (int i = 0; i < kDotColumns; ++i) to[i] = total(v[i]);
}
TFN_INLINE void store_totals(float* to, const Floats (&v)[kDotColumns]) {
  static_assert(kDotColumns == 4);
  using Four = VectorOf<float, 16>::Type;
  const Floats all = add_neighbours(add_neighbours(v[0], v[1]), add_neighbours(v[2], v[3]));
  Four parts[kLanes<float> / 4];
  std::memcpy(parts, &all, sizeof all);
  for (int step = kLanes<float> / 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) parts[i] += parts[i + step];
  std::memcpy(to, parts, sizeof(Four));
}

// sums[r][c] for a tile; rows of left and right are read to a whole vector.
template <class A>
TFN_INLINE void dot_tile(const A* left, int64_t left_row, const A* right, int64_t right_row, int64_t depth, A* sums,
                         int64_t sums_row) {
  Vector<A> partial[kDotRows][kDotColumns] = {};
  for (int64_t k = 0; k < depth; k += kLanes<A>) {
    Vector<A> columns[kDotColumns];
    repeat<kDotColumns>([&](auto c)
                            __attribute__((always_inline)) { columns[c] = load(right + c * right_row + k, Whole{}); });
    repeat<kDotRows>([&](auto r) __attribute__((always_inline)) {
      const Vector<A> v = load(left + r * left_row + k, Whole{});
      repeat<kDotColumns>([&](auto c) __attribute__((always_inline)) { partial[r][c] += v * columns[c]; });
    });
  }
  repeat<kDotRows>([&](auto r) __attribute__((always_inline)) { store_totals(sums + r * sums_row, partial[r]); });
}

// products[i][j] = sum over a panel's positions of u[i] * v[j]; `row`s are the lengths of their rows. With `upper` only
// j >= i need be right. `meanwhile` is called product_calls times, or a little less often.
constexpr int64_t kDotTogether = 2 * kDotRows;  // rows of u that stay in the first-level cache while v passes by
template <class T>
int64_t product_calls(ChannelRows<T>, int64_t rows, int64_t columns, int64_t, bool upper) {
  return ((rows + kDotTogether - 1) / kDotTogether) * ((columns + kDotColumns - 1) / kDotColumns) / (upper ? 2 : 1) + 1;
}
template <class T, class A, class Meanwhile>
__attribute__((noinline)) void panel_products(ChannelRows<T>, const A* u, int64_t u_row, const A* v, int64_t v_row,
                                              int64_t rows, int64_t columns, int64_t positions, bool upper, A* products,
                                              int64_t row, Meanwhile meanwhile) {
  for (int64_t first = 0; first < rows; first += kDotTogether)
    for (int64_t j = upper ? first / kDotColumns * kDotColumns : 0; j < columns; j += kDotColumns) {
      meanwhile();
      for (int64_t i = first; i < first + kDotTogether && i < rows && (!upper || i < j + kDotColumns); i += kDotRows)
        dot_tile(u + i * u_row, u_row, v + j * v_row, v_row, positions, products + i * row + j, row);
    }
}

// Positions are taken some at a time, which stay in the first-level cache; and sums of fewer numbers are better sums.
constexpr int64_t kDepth = 64;
template <class T>
int64_t product_calls(PositionRows<T>, int64_t rows, int64_t columns, int64_t positions, bool upper) {
  return tile_count<Accumulator<T>>(rows, columns) * ((positions + kDepth - 1) / kDepth) * (upper ? 3 : 2) / 2;
}
template <class T, class A, class Meanwhile>
__attribute__((noinline)) void panel_products(PositionRows<T>, const A* u, int64_t u_row, const A* v, int64_t v_row,
                                              int64_t rows, int64_t columns, int64_t positions, bool upper, A* products,
                                              int64_t row, Meanwhile meanwhile) {
  for (int64_t k = 0; k < positions; k += kDepth) {
    const int64_t depth = positions - k < kDepth ? positions - k : kDepth;
    const auto body = [=, &meanwhile](int64_t i, int64_t j, auto some, auto vectors) {
      if (upper && i >= j + vectors * kLanes<A>) return;
      meanwhile();
      Tile<A, some, vectors> tile;
      tile.begin(false, nullptr, 0);
      tile.add_products({u + k * u_row + i, 1, u_row}, v + k * v_row + j, v_row, depth);
      A* const to = products + i * row + j;
      if (k > 0)
        tile.each([=](int64_t r, int64_t c, Vector<A>& sums)
                      __attribute__((always_inline)) { sums += load(to + r * row + c, Whole{}); });
      tile.end(to, row);
    };
    if (upper)  // narrower tiles leave out more
      for_tiles<A, kTileVectors / 2>(rows, columns, body);
    else
      for_tiles<A>(rows, columns, body);
  }
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
