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

// f(std::integral_constant of the lesser of count, which is at least 1, and MOST)
template <int MOST, class F>
TFN_INLINE void by_count(int64_t count, F f) {
  if constexpr (MOST > 1)
    if (count < MOST) return by_count<MOST - 1>(count, f);
  f(std::integral_constant<int, MOST>());
}

// body(first row, first column, rows, vectors), the last two as constants, for the tiles of a matrix; columns, which
// are counted to a whole vector, outermost.
template <class A, class Body>
TFN_INLINE void for_tiles(int64_t rows, int64_t columns, Body body) {
  for (int64_t column = 0; column < columns; column += kTileVectors * kLanes<A>)
    by_count<kTileVectors>((columns - column + kLanes<A> - 1) / kLanes<A>, [&](auto vectors) {
      for (int64_t row = 0; row < rows; row += kTileRows)
        by_count<kTileRows>(rows - row, [&](auto some) { body(row, column, some, vectors); });
    });
}

template <class A>
struct Strided {
  const A* data;
  int64_t row, step;  // from a row to the next, and along it
};

template <class A, int ROWS, int VECTORS>
struct Tile {
  Vector<A> sums[ROWS][VECTORS] = {};

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

  // f(row, offset of a vector's first column, vector)
  template <class F>
  TFN_INLINE void each(F f) const {
    repeat<ROWS>([&](auto r) __attribute__((always_inline)) {
      repeat<VECTORS>([&](auto c) __attribute__((always_inline)) { f(int64_t(r), c * kLanes<A>, sums[r][c]); });
    });
  }
};

template <class A>
TFN_INLINE A across(Vector<A> v) {
  if constexpr (std::is_same_v<A, float>)
    return float(total(low(v) + high(v)));
  else
    return total(v);
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
  repeat<kDotRows>([&](auto r) __attribute__((always_inline)) {
    repeat<kDotColumns>([&](auto c)
                            __attribute__((always_inline)) { sums[r * sums_row + c] = across<A>(partial[r][c]); });
  });
}

// products[i][j] = sum over a panel's positions of u[i] * v[j]; `row`s are the lengths of their rows. With `upper` only
// j >= i need be right.
template <class T, class A>
__attribute__((noinline)) void panel_products(ChannelRows<T>, const A* u, int64_t u_row, const A* v, int64_t v_row,
                                              int64_t rows, int64_t columns, int64_t positions, bool upper, A* products,
                                              int64_t row) {
  for (int64_t i = 0; i < rows; i += kDotRows)
    for (int64_t j = upper ? i / kDotColumns * kDotColumns : 0; j < columns; j += kDotColumns)
      dot_tile(u + i * u_row, u_row, v + j * v_row, v_row, positions, products + i * row + j, row);
}
template <class T, class A>
__attribute__((noinline)) void panel_products(PositionRows<T>, const A* u, int64_t u_row, const A* v, int64_t v_row,
                                              int64_t rows, int64_t columns, int64_t positions, bool upper, A* products,
                                              int64_t row) {
  for_tiles<A>(rows, columns, [=](int64_t i, int64_t j, auto some, auto vectors) {
    if (upper && i >= j + vectors * kLanes<A>) return;
    Tile<A, some, vectors> tile;
    tile.add_products({u + i, 1, u_row}, v + j, v_row, positions);
    tile.each([=](int64_t r, int64_t c, Vector<A> sums)
                  __attribute__((always_inline)) { store(products + (i + r) * row + j + c, sums, Whole{}); });
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
