// Panels: what the whitening kernels have of a feature map in shared memory, a tile of channels by some positions, in
// the accumulation type, less a number for each channel.
//
//   ChannelsFirst   rows are channels          q: a panel is `row_vectors` neighbouring vectors q of every channel's
//                                              planes, one plane after the other; the last vector of a plane is padded
//                     channel 0  [ q | q + 1 | ... ]
//                     channel 1  [ q | q + 1 | ... ]             thread: one q, every row_step-th channel
//
//   ChannelsLast    rows are positions         p: a panel is `positions` neighbouring positions of all samples
//                     position p      [ channels 0.. | .. | ... ]
//                     position p + 1  [ channels 0.. | .. | ... ] thread: one vector of channels, every row_step-th p
//
// Vectors never straddle planes (7 x 7 maps), whatever the alignment: vector_access.cuh. Threads load a panel into
// registers (load), later put it into shared memory (stage): in between, warps multiply the panel before. What is not
// there (beyond the tile's channels, a plane's or the batch's end) is zero after the shift, and adds nothing to a
// product.
#pragma once
#include "../interface/plane_norm.h"
#include "../math/divisor.h"
#include "common/matrix_multiply.cuh"
#include "common/reduce.cuh"
#include "common/vector_access.cuh"
#include "whitening_tiles.h"

namespace torchfastnorm::cuda {

// The problem and its plan (interface/whitening_plan.h), with what a kernel would otherwise have to divide by.
struct WhiteningGeometry {
  int64_t positions;  // of all samples
  int spatial, channels, width;
  int span;  // channels of a bundle
  uint32_t bundles, tiles;
  uint32_t panels;
  uint32_t vectors;       // ChannelsFirst: of a channel, over all samples
  Divisor plane_vectors;  // ChannelsFirst: of a plane
  Divisor width_divisor;
  bool aligned;  // every plane, or tile of channels at a position, begins on a 16-byte boundary
};

// A tile of channels.
struct Channels {
  int first, count;

  __device__ __forceinline__ Channels(const WhiteningGeometry& g, int tile_channels, uint32_t bundle, uint32_t tile) {
    const int begin = int(bundle) * g.span;
    const int end = g.channels - begin < g.span ? g.channels : begin + g.span;
    first = begin + int(tile) * tile_channels;
    count = end - first < tile_channels ? end - first : tile_channels;
  }
};

template <class T, Layout LAYOUT, int TILE>
struct Panel {
  using A = Accumulator<T>;
  static constexpr bool planes = LAYOUT == Layout::ChannelsFirst;
  static constexpr int N = Packed<T>::size;
  static constexpr int positions = panel_positions(TILE, sizeof(T));
  static constexpr int rows = planes ? TILE : positions;
  static constexpr int length = planes ? positions : TILE;  // of a row
  static constexpr int row_vectors = length / N;
  static constexpr int row_step = whitening_threads / row_vectors;
  static_assert(rows == row_step * panel_loads && row_vectors <= 32);

  // Where this thread's vectors of a panel lie.
  struct Place {
    int64_t first;  // element of the row of load 0, and from there to the next one's
    int64_t step;
    int row, index;       // row of load 0 in the panel; vector of the row in global memory
    int rows_left, rest;  // rows there are from `row` on; elements of a row from the vector on

    __device__ __forceinline__ Place(const WhiteningGeometry& g, const Channels& channels, uint32_t panel) {
      const int thread = recomputed(int(threadIdx.x)), vector = thread % row_vectors;
      row = thread / row_vectors;
      if constexpr (planes) {
        const uint32_t q = panel * row_vectors + vector;
        const uint32_t sample = g.plane_vectors.quotient(q);
        index = int(q - sample * g.plane_vectors.value);
        first = (int64_t(sample) * g.channels + channels.first + row) * g.spatial;
        step = int64_t(row_step) * g.spatial;
        rows_left = q < g.vectors ? channels.count - row : 0;
        rest = g.spatial - index * N;
      } else {
        const int64_t p = int64_t(panel) * positions + row, left = g.positions - p;
        index = vector;
        first = p * g.channels + channels.first;
        step = int64_t(row_step) * g.channels;
        rows_left = left < positions ? int(left) : positions;
        rest = channels.count - index * N;
      }
    }
    // Elements of load k's vector that are there.
    __device__ __forceinline__ int elements(int k) const {
      return k * row_step < rows_left ? (rest < N ? rest : N) : 0;
    }
    // Elements of a row in global memory, of which none may be touched beyond.
    __device__ __forceinline__ int limit(int k) const { return k * row_step < rows_left ? rest + index * N : 0; }
  };

  static __device__ __forceinline__ void load(const T* data, const Place& place, bool aligned,
                                              Packed<T> (&x)[panel_loads]) {
    aligned = aligned && reinterpret_cast<uintptr_t>(data) % 16 == 0;
#pragma unroll
    for (int k = 0; k < panel_loads; ++k)
      x[k] = load_vector<Access::Once, T>(data + place.first + k * place.step, place.index, place.limit(k), aligned);
  }

  // Calls add(k, values) with the shifted values of each vector, then puts them into `panel`, rows `pitch` apart.
  // center: of each channel of the tile.
  template <class Add>
  static __device__ __forceinline__ void stage(const Packed<T> (&x)[panel_loads], const Place& place, const A* center,
                                               A* panel, int pitch, Add add) {
    const int vector = recomputed(int(threadIdx.x)) % row_vectors;
#pragma unroll
    for (int k = 0; k < panel_loads; ++k) {
      const int row = place.row + k * row_step, there = place.elements(k);
      A v[N];
      unpack(x[k], v);
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = j < there ? v[j] - center[planes ? row : vector * N + j] : A(0);
      add(k, v);
      A* target = panel + row * pitch + vector * N;
#pragma unroll
      for (int j = 0; j < N; j += Packed<A>::size) {
        Packed<A> packed;
        memcpy(packed.word, v + j, 16);
        *reinterpret_cast<Packed<A>*>(target + j) = packed;
      }
    }
  }
};

// Positions before panel `panel`: there are fewer in a panel where planes end.
template <class T, Layout LAYOUT, int TILE>
__device__ __forceinline__ int64_t positions_before(const WhiteningGeometry& g, uint32_t panel) {
  using P = Panel<T, LAYOUT, TILE>;
  if constexpr (P::planes) {
    const int64_t q = int64_t(panel) * P::row_vectors;
    if (q >= g.vectors) return g.positions;
    const uint32_t sample = g.plane_vectors.quotient(uint32_t(q));
    const int within = int(uint32_t(q) - sample * g.plane_vectors.value) * P::N;
    return int64_t(sample) * g.spatial + within;
  } else {
    const int64_t p = int64_t(panel) * P::positions;
    return p < g.positions ? p : g.positions;
  }
}

}  // namespace torchfastnorm::cuda
