// y = matrix_u (u - mean_u) + matrix_v (v - mean_v) + shift at every position (interface/batch_whitening.h): panels of
// a feature map, multiplied by matrices that stay in shared memory.
//
//   ChannelsFirst            positions of the panel        ChannelsLast              channels out
//                            [ u - mean_u ]                                          [ matrix, transposed ]
//     [ matrix ]  channels   [            ]                  positions  [ u - mean ] [                    ]
//      channels    out       [     y      ]                             [          ] [         y          ]
//
// A block has a tile of output channels and takes every `strides`th panel. For each panel it goes through steps, one
// for each tensor and each tile of input channels; the next step's panel is on its way to registers while the warps
// multiply. The result goes through the panel's place in shared memory to stores of 16 bytes, rounded once.
//
// Bytes: a group of up to 64 channels: u and v read once, y written once, matrices read once a block. Wider ones: each
// tile of outputs reads all of u and v again (its neighbours at the same time: from L2, it is hoped), and a matrix tile
// for each panel.
// Limits: as whitening_moments.cuh. Sums over channels are single precision's, in the order of channels.
#pragma once
#include "whitening_panel.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct WhiteningTransformArguments {
  WhiteningGeometry geometry;
  const void* tensors[2];  // u, v; v may be null
  const A* matrices[2];    // (groups, width, width)
  const A* means[2];       // may be null: zeros
  const A* shift;          // may be null: zeros
  void* y;
  uint32_t strides;
  int bundle_groups;
};

template <class T, Layout LAYOUT, int TILE>
struct TransformShared {
  using P = Panel<T, LAYOUT, TILE>;
  using A = Accumulator<T>;
  static constexpr Operand operand = P::planes ? Operand::Across : Operand::Along;
  static constexpr int pitch = pitch_of<A>(operand, P::length), panel_values = P::rows * pitch;
  static constexpr int matrix_pitch = pitch_of<A>(Operand::Along, TILE), matrix_values = TILE * matrix_pitch;
  // The warps share the result, (rows, columns) as a panel, in tiles that are as square as they come.
  static constexpr int rows = P::rows, cols = P::length;
  static constexpr int warp_rows = rows >= 4 * cols ? 4 : cols >= 4 * rows ? 1 : 2, warp_cols = 4 / warp_rows;
  static constexpr int M = rows / warp_rows / 16, N = cols / warp_cols / 8;
  static_assert(M * 16 * warp_rows == rows && N * 8 * warp_cols == cols);
};

// A vector of a row of y from values in shared memory: one aligned granule of 16 bytes, which may begin in the vector
// `before`, in the same row and beside it in shared memory. What no granule takes goes element by element.
template <class T, class A>
__device__ __forceinline__ void store_from_shared(T* p, const A* values, int count, bool before, bool after) {
  constexpr int N = Packed<T>::size;
  const int offset = int(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
  const int from = before ? -offset : 0, to = count < N - offset ? count : N - offset;
  if (to - from == N) {
    A v[N];
    if (from == 0) {  // 16 bytes at a time: neighbours are N values apart, and would meet in a few banks
#pragma unroll
      for (int j = 0; j < N; j += Packed<A>::size) {
        const Packed<A> part = *reinterpret_cast<const Packed<A>*>(values + j);
        memcpy(v + j, part.word, 16);
      }
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = values[from + j];
    }
    const Packed<T> packed = pack<T>(v);
    store(reinterpret_cast<uint4*>(p - offset),
          make_uint4(packed.word[0], packed.word[1], packed.word[2], packed.word[3]));
  } else {
#pragma unroll 1
    for (int j = from; j < to; ++j) store(p + j, narrow<T>(values[j]));
  }
#pragma unroll 1
  for (int j = N - offset; j < count && !after; ++j) store(p + j, narrow<T>(values[j]));
}

// For groups that share a tile: zero times another group's NaN or infinity is NaN. What of the panel's results, in
// shared memory, is not finite is made again from its own group alone.
template <class T, Layout LAYOUT, int TILE>
__device__ __forceinline__ void isolate(const WhiteningTransformArguments<Accumulator<T>>& a,
                                        const typename Panel<T, LAYOUT, TILE>::Place& place, Accumulator<T>* panel,
                                        const Accumulator<T>* operands, const Accumulator<T>* shift) {
  using P = Panel<T, LAYOUT, TILE>;
  using S = TransformShared<T, LAYOUT, TILE>;
  using A = Accumulator<T>;
  const WhiteningGeometry& g = a.geometry;
  const int vector = int(threadIdx.x) % P::row_vectors, between = P::planes ? g.spatial : 1;  // two channels
#pragma unroll 1
  for (int k = 0; k < panel_loads; ++k) {
#pragma unroll 1
    for (int j = 0; j < place.elements(k); ++j) {
      const int row = place.row + k * P::row_step, col = vector * P::N + j, channel = P::planes ? row : col;
      A& result = panel[row * S::pitch + col];
      if (A(0) * result == A(0)) continue;
      const int begin = int(g.width_divisor.quotient(uint32_t(channel))) * g.width;
      A sum = shift[channel];
#pragma unroll 1
      for (int tensor = 0; tensor < 2 && a.tensors[tensor] != nullptr; ++tensor) {
        const T* const data = static_cast<const T*>(tensor == 0 ? a.tensors[0] : a.tensors[1]) + place.first +
                              k * place.step + place.index * P::N + j;
        const A *const matrix = operands + tensor * (S::matrix_values + TILE), *const means = matrix + S::matrix_values;
#pragma unroll 1
        for (int other = begin; other < begin + g.width; ++other)
          sum += matrix[channel * S::matrix_pitch + other] *
                 (A(widen(load_cached(data + int64_t(other - channel) * between))) - means[other]);
      }
      result = sum;
    }
  }
}

template <class T, Layout LAYOUT, int TILE>
__global__ void __launch_bounds__(whitening_threads, transform_blocks)
    whitening_transform(const WhiteningTransformArguments<Accumulator<T>> a) {
  using P = Panel<T, LAYOUT, TILE>;
  using S = TransformShared<T, LAYOUT, TILE>;
  using A = Accumulator<T>;
  DYNAMIC_SHARED(A, shared);
  SHARED(bool, not_finite, [whitening_threads / 32]);
  const WhiteningGeometry& g = a.geometry;
  const uint32_t tiles = TILE == narrow_tile ? 1 : g.tiles;
  const uint32_t stride_bundle = blockIdx.x / tiles, tile = blockIdx.x - stride_bundle * tiles;
  const uint32_t first = stride_bundle / g.bundles, bundle = stride_bundle - first * g.bundles;
  const int tensors = a.tensors[1] != nullptr ? 2 : 1, steps = tensors * int(tiles);
  const bool resident = tiles == 1;
  const Channels out(g, TILE, bundle, tile);

  const bool bundled = TILE == narrow_tile && g.span > g.width;  // groups share the tile
  A* const panel = shared;
  A* const shift = panel + S::panel_values;
  A* const operands = shift + TILE;  // a matrix and the means of its columns; two if they stay
  const auto place_of = [&](int step) { return operands + (resident ? step * (S::matrix_values + TILE) : 0); };
  const auto tensor_of = [&](int step) { return step >= int(tiles) ? 1 : 0; };
  const auto input_of = [&](int step) { return Channels(g, TILE, bundle, uint32_t(step) - tensor_of(step) * tiles); };

  const int thread = int(threadIdx.x), warp = thread / 32;
  const auto fill = [&](int step) {
    const Channels in = input_of(step);
    const A* const matrix = tensor_of(step) == 0 ? a.matrices[0] : a.matrices[1];
    const A* const means = tensor_of(step) == 0 ? a.means[0] : a.means[1];
    A* const place = place_of(step);
    const int first_channel = int(bundle) * g.span;
    // One column a thread, and in it the rows of the column's group.
    const int col = thread % TILE, j = in.first - first_channel + col;
    const int group = int(g.width_divisor.quotient(uint32_t(j))), begin = group * g.width;
    const int first_row = begin - (out.first - first_channel);  // in the tile
    const A* const column = matrix + (int64_t(bundle) * a.bundle_groups + group) * g.width * g.width -
                            int64_t(first_row) * g.width + (j - begin);
#pragma unroll 8
    for (int row = thread / TILE; row < TILE; row += whitening_threads / TILE) {
      const bool there = col < in.count && row < out.count && row >= first_row && row - first_row < g.width;
      place[row * S::matrix_pitch + col] = there ? load_cached(column + int64_t(row) * g.width) : A(0);
    }
    if (thread < TILE)
      place[S::matrix_values + thread] =
          means != nullptr && thread < in.count ? load_cached(means + in.first + thread) : A(0);
  };
  if (thread < TILE)
    shift[thread] = a.shift != nullptr && thread < out.count ? load_cached(a.shift + out.first + thread) : A(0);
  for (int step = 0; resident && step < steps; ++step) fill(step);
  __syncthreads();

  Packed<T> x[panel_loads];
  const auto load = [&](uint32_t at, int step) {
    const T* const data = static_cast<const T*>(tensor_of(step) == 0 ? a.tensors[0] : a.tensors[1]);
    P::load(data, typename P::Place(g, input_of(step), at), g.aligned, x);
  };
  const int warp_row = warp / S::warp_cols * (16 * S::M), warp_col = warp % S::warp_cols * (8 * S::N);
  if (first < g.panels) load(first, 0);
  for (uint32_t at = first; at < g.panels; at += a.strides) {
    A c[S::M][S::N][4] = {};
    for (int step = 0; step < steps; ++step) {
      const Channels in = input_of(step);
      A* const matrix = place_of(step);
      if (!resident) {
        fill(step);
        __syncthreads();  // its means
      }
      P::stage(x, typename P::Place(g, in, at), matrix + S::matrix_values, panel, S::pitch,
               [](int, const A(&)[P::N]) {});
      __syncthreads();
      if (step + 1 < steps) {
        load(at, step + 1);
      } else if (at + a.strides < g.panels) {
        load(at + a.strides, 0);
      }
      if constexpr (P::planes) {
        multiply_shared<Operand::Along, S::operand, S::matrix_pitch, S::pitch>(
            c, matrix + warp_row * S::matrix_pitch, panel + warp_col, 0, (in.count + 7) / 8, 1);
      } else {
        multiply_shared<S::operand, Operand::Along, S::pitch, S::matrix_pitch>(
            c, panel + warp_row * S::pitch, matrix + warp_col * S::matrix_pitch, 0, (in.count + 7) / 8, 1);
      }
      __syncthreads();  // panel and matrix may be written again
    }
    A odd = A(0);  // NaN where a result is not finite
    for_each_pair(c, [&](int row, int col, A left, A right) {
      row += warp_row, col += warp_col;
      const A values[2] = {left + shift[P::planes ? row : col], right + shift[P::planes ? row : col + 1]};
      Packed<A, 2> packed;
      memcpy(packed.word, values, sizeof values);
      *reinterpret_cast<Packed<A, 2>*>(panel + row * S::pitch + col) = packed;
      odd += A(0) * left + A(0) * right;
    });
    if (bundled) {
      const bool any = __any_sync(0xffffffffu, !(odd == A(0)));
      if (thread % 32 == 0) not_finite[warp] = any;
    }
    __syncthreads();
    // `out` again: kept over the multiplication it would be spilled.
    const typename P::Place place(g, Channels(g, TILE, uint32_t(recomputed(int(bundle))), tile), at);
    if (bundled && (not_finite[0] || not_finite[1] || not_finite[2] || not_finite[3])) {
      isolate<T, LAYOUT, TILE>(a, place, panel, operands, shift);
      __syncthreads();
    }
    const int vector = thread % P::row_vectors;
    const bool before = vector > 0 && place.index > 0, after = vector + 1 < P::row_vectors && place.rest > P::N;
#pragma unroll 1
    for (int k = 0; k < panel_loads; ++k) {
      const int count = place.elements(k);
      if (count > 0)
        store_from_shared(static_cast<T*>(a.y) + place.first + k * place.step + place.index * P::N,
                          panel + (place.row + k * P::row_step) * S::pitch + vector * P::N, count, before, after);
    }
    __syncthreads();
  }
}

}  // namespace torchfastnorm::cuda
