// Means and co-moments of feature maps (interface/batch_whitening.h): panels of two tiles of channels, multiplied by
// tensor cores.
//
//                            v, tile J                  a block: one pair of tiles over one slab of positions
//                          [ k --> ]
//                          [ panel ]                      anchor    mean of the slab's first panel, of each channel
//                                                         panel     u - anchor, v - anchor, in shared memory
//      u, tile I           c[i][j] += sum_k u[i][k] v[j][k]         while the next panel is on its way to registers
//      [ k --> ]           warps (64 x 64): 2 x 2 of 32 x 32
//      [ panel ]           warps (32 x 32): each 8 of every 32 k, added up in order at the end
//
//   at the slab's end      mean = anchor + s / n,  co-moment = c - s_u s_v / n        s: sums of what was in the panels
//   whitening_finish       merges slabs in order by Chan's formula, divides by the number of positions
//
// Never the mean of products less the product of means: anchors are as near to the mean as a sample mean is, whatever
// the mean (1e4 and a deviation of 1 lose no digits). NaN and infinity stay visible in the channels that have them. No
// atomics; the order of every sum follows from the shape and the number of slabs. Of a covariance, pairs on and above
// the diagonal are computed and both places written: symmetric to the bit.
//
// Bytes: every pair of tiles reads both; with `tiles` tiles a group u is read `tiles` times (v too, where it is another
// tensor), once where a group has no more than 64 channels. Slabs leave tile^2 numbers each.
// Limits: fewer than 2^31 vectors of a channel (contiguous), checked by the launcher.
#pragma once
#include "whitening_panel.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct WhiteningMomentsArguments {
  WhiteningGeometry geometry;
  const void* u;
  const void* v;  // null: u
  A* records;     // (slab, bundle, pair): whitening_tiles.h
  A* mean_u;
  A* mean_v;  // may be null
  A* moments;
  uint32_t slab, slabs, pairs;
  int bundle_groups;
};

// Pair number `pair` of tiles (I, J); of a covariance I <= J.
struct TilePair {
  uint32_t i, j;
  __device__ __forceinline__ TilePair(uint32_t pair, uint32_t tiles, bool symmetric) {
    if (symmetric) {
      for (j = 0; pair > j; ++j) pair -= j + 1;
      i = pair;
    } else {
      i = pair / tiles, j = pair - i * tiles;
    }
  }
};

// Sums of a tensor's panels, a channel each.
template <class T, Layout LAYOUT, int TILE>
struct PanelSums {
  using P = Panel<T, LAYOUT, TILE>;
  using A = Accumulator<T>;
  A sums[P::planes ? panel_loads : P::N] = {};

  __device__ __forceinline__ void add(int k, const A (&v)[P::N]) {
    if constexpr (P::planes) {
      A sum = v[0];
#pragma unroll
      for (int j = 1; j < P::N; ++j) sum += v[j];
      sums[k] += sum;
    } else {
#pragma unroll
      for (int j = 0; j < P::N; ++j) sums[j] += v[j];
    }
  }
  // Over all threads, into `total` of each channel. scratch: TILE * row_step values that nobody uses.
  __device__ __forceinline__ void finish(A* total, A* scratch) {
    const int vector = int(threadIdx.x) % P::row_vectors, row = int(threadIdx.x) / P::row_vectors;
    if constexpr (P::planes) {
      group_sum(sums, P::row_vectors);
#pragma unroll
      for (int k = 0; k < panel_loads; ++k)
        if (vector == 0) total[row + k * P::row_step] = sums[k];
      __syncthreads();
    } else {
#pragma unroll
      for (int j = 0; j < P::N; ++j) scratch[row * TILE + vector * P::N + j] = sums[j];
      __syncthreads();
      if (threadIdx.x < TILE) {
        A sum = A(0);
        for (int i = 0; i < P::row_step; ++i) sum += scratch[i * TILE + int(threadIdx.x)];
        total[threadIdx.x] = sum;
      }
      __syncthreads();
    }
  }
};

template <class T, Layout LAYOUT, int TILE>
struct MomentsShared {
  using P = Panel<T, LAYOUT, TILE>;
  using A = Accumulator<T>;
  static constexpr Operand operand = P::planes ? Operand::Along : Operand::Across;
  static constexpr int pitch = pitch_of<A>(operand, P::length), panel_values = P::rows * pitch;
  static_assert(panel_values >= TILE * P::row_step && panel_values >= narrow_tile * narrow_tile);
};

template <class T, Layout LAYOUT, int TILE>
__global__ void __launch_bounds__(whitening_threads, moments_blocks)
    whitening_moments(const WhiteningMomentsArguments<Accumulator<T>> a) {
  using P = Panel<T, LAYOUT, TILE>;
  using S = MomentsShared<T, LAYOUT, TILE>;
  using A = Accumulator<T>;
  constexpr bool split_k = TILE == narrow_tile;  // the warps share k, not the tile
  constexpr int warps = whitening_threads / 32, steps = P::positions / 8;
  DYNAMIC_SHARED(A, shared);
  const WhiteningGeometry& g = a.geometry;
  const bool symmetric = a.v == nullptr;
  const uint32_t slab_bundle = blockIdx.x / a.pairs, slab = slab_bundle / g.bundles;
  const TilePair pair(blockIdx.x - slab_bundle * a.pairs, g.tiles, symmetric);
  const uint32_t bundle = slab_bundle - slab * g.bundles;
  const bool same = symmetric && pair.i == pair.j;
  const Channels channels_u(g, TILE, bundle, pair.i), channels_v(g, TILE, bundle, pair.j);
  const T* const u = static_cast<const T*>(a.u);
  const T* const v = symmetric ? u : static_cast<const T*>(a.v);
  const uint32_t first = slab * a.slab, end = g.panels - first < a.slab ? g.panels : first + a.slab;

  A *const center_u = shared, *const center_v = center_u + TILE;
  A *const sum_u = center_v + TILE, *const sum_v = same ? sum_u : sum_u + TILE;
  A *const panel_u = shared + 4 * TILE, *const panel_v = same ? panel_u : panel_u + S::panel_values;

  Packed<T> x_u[panel_loads], x_v[panel_loads];
  const auto load = [&](uint32_t panel) {
    P::load(u, typename P::Place(g, channels_u, panel), g.aligned, x_u);
    if (!same) P::load(v, typename P::Place(g, channels_v, panel), g.aligned, x_v);
  };
  load(first);

  // Anchors: the first panel as it is, added up.
  const int thread = int(threadIdx.x), warp = thread / 32;
  if (thread < 2 * TILE) center_u[thread] = A(0);
  __syncthreads();
  const auto nothing = [](int, const A(&)[P::N]) {};
  P::stage(x_u, typename P::Place(g, channels_u, first), center_u, panel_u, S::pitch, nothing);
  if (!same) P::stage(x_v, typename P::Place(g, channels_v, first), center_v, panel_v, S::pitch, nothing);
  __syncthreads();
  const int64_t begin = positions_before<T, LAYOUT, TILE>(g, first);
  if (thread < (same ? TILE : 2 * TILE)) {
    const A* channel = thread < TILE ? panel_u : panel_v;
    channel += thread % TILE * (P::planes ? S::pitch : 1);
    A sum = A(0);
#pragma unroll 4
    for (int k = 0; k < P::positions; ++k) sum += channel[k * (P::planes ? 1 : S::pitch)];
    center_u[thread] = quotient(sum, A(positions_before<T, LAYOUT, TILE>(g, first + 1) - begin));
  }
  __syncthreads();

  // Below the diagonal nobody reads.
  const int warp_row = split_k ? 0 : warp / 2 * 32, warp_col = split_k ? 0 : warp % 2 * 32;
  const bool multiplies = split_k || !same || warp_row <= warp_col;
  PanelSums<T, LAYOUT, TILE> sums_u, sums_v;
  A c[2][4][4] = {};
  for (uint32_t panel = first; panel < end; ++panel) {
    P::stage(x_u, typename P::Place(g, channels_u, panel), center_u, panel_u, S::pitch,
             [&](int k, const A(&values)[P::N]) { sums_u.add(k, values); });
    if (!same)
      P::stage(x_v, typename P::Place(g, channels_v, panel), center_v, panel_v, S::pitch,
               [&](int k, const A(&values)[P::N]) { sums_v.add(k, values); });
    __syncthreads();
    if (panel + 1 < end) load(panel + 1);
    if (multiplies)
      multiply_shared<S::operand, S::operand, S::pitch, S::pitch>(c, panel_u + warp_row * (P::planes ? S::pitch : 1),
                                                                  panel_v + warp_col * (P::planes ? S::pitch : 1),
                                                                  split_k ? warp : 0, steps, split_k ? warps : 1);
    __syncthreads();  // the panels may be written again
  }

  sums_u.finish(sum_u, panel_u);
  if (!same) sums_v.finish(sum_v, panel_v);
  if constexpr (split_k) {
#pragma unroll 1
    for (int from = 1; from < warps; ++from) {
      if (warp == from)
        for_each_pair(c, [&](int row, int col, A& left, A& right) {
          panel_u[row * TILE + col] = left, panel_u[row * TILE + col + 1] = right;
        });
      __syncthreads();
      if (warp == 0)
        for_each_pair(c, [&](int row, int col, A& left, A& right) {
          left += panel_u[row * TILE + col], right += panel_u[row * TILE + col + 1];
        });
      __syncthreads();
    }
  }

  A* const record = a.records + int64_t(blockIdx.x) * record_values(TILE);
  const A count = A(positions_before<T, LAYOUT, TILE>(g, end) - begin), inverse = quotient(A(1), count);
  if (thread == 0) store(record, count);
  if (thread < TILE) {
    store(record + record_anchors + thread, center_u[thread]);
    store(record + record_anchors + TILE + thread, (same ? center_u : center_v)[thread]);
    store(record + record_offsets(TILE) + thread, sum_u[thread] * inverse);
    store(record + record_offsets(TILE) + TILE + thread, sum_v[thread] * inverse);
  }
  if (multiplies && !(split_k && warp > 0))
    for_each_pair(c, [&](int row, int col, A left, A right) {
      row += warp_row, col += warp_col;
      const A scale = sum_u[row] * inverse, values[2] = {left - scale * sum_v[col], right - scale * sum_v[col + 1]};
      Packed<A, 2> packed;
      memcpy(packed.word, values, sizeof values);
      store(reinterpret_cast<Packed<A, 2>*>(record + record_products(TILE) + row * TILE + col), packed);
    });
}

// ---- merging the slabs

template <class A>
struct CoMoment {
  A count, mean_u, mean_v, product;

  __device__ __forceinline__ void merge(const CoMoment& other) {  // Chan; other.count > 0
    const A total = count + other.count, share = quotient(other.count, total);
    const A du = other.mean_u - mean_u, dv = other.mean_v - mean_v;
    mean_u += du * share;
    mean_v += dv * share;
    product += other.product + du * dv * (count * share);
    count = total;
  }
};

template <class A, int TILE>
__global__ void __launch_bounds__(32 * finish_warps, sizeof(A) == 4 ? 3 : 2)
    whitening_finish(const WhiteningMomentsArguments<A> a) {
  SHARED(CoMoment<A>, chunks, [finish_warps][32]);
  const WhiteningGeometry& g = a.geometry;
  const bool symmetric = a.v == nullptr;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr uint32_t pieces = TILE * TILE / 32;
  const uint32_t bundle_pair = blockIdx.x / pieces, at = blockIdx.x % pieces * 32 + lane;
  const uint32_t bundle = bundle_pair / a.pairs;
  const TilePair pair(bundle_pair - bundle * a.pairs, g.tiles, symmetric);
  const int row = int(at / TILE), col = int(at % TILE);
  const int i = int(pair.i) * TILE + row, j = int(pair.j) * TILE + col;  // channels of the bundle
  const int group = int(g.width_divisor.quotient(uint32_t(i))), first_channel = int(bundle) * g.span;
  const int span = g.channels - first_channel < g.span ? g.channels - first_channel : g.span;
  const bool wanted =
      i < span && j < span && uint32_t(group) == g.width_divisor.quotient(uint32_t(j)) && (!symmetric || i <= j);

  const uint32_t per_warp = (a.slabs + finish_warps - 1) / finish_warps;
  const uint32_t first = warp * per_warp, end = first + per_warp < a.slabs ? first + per_warp : a.slabs;
  // Means relative to the first slab's anchors: differences of anchors are exact where the mean is large.
  const A* record = a.records + int64_t(bundle_pair) * record_values(TILE);
  const A origin_u = load_cached(record + record_anchors + row),
          origin_v = load_cached(record + record_anchors + TILE + col);
  CoMoment<A> merged{A(0), A(0), A(0), A(0)};
  if (wanted && first < end) {
    const int64_t step = int64_t(g.bundles) * a.pairs * record_values(TILE);
    record += first * step;
    const auto read = [&] {
      const A *const anchors = record + record_anchors, *const offsets = record + record_offsets(TILE);
      return CoMoment<A>{load_cached(record), (load_cached(anchors + row) - origin_u) + load_cached(offsets + row),
                         (load_cached(anchors + TILE + col) - origin_v) + load_cached(offsets + TILE + col),
                         load_cached(record + record_products(TILE) + at)};
    };
    merged = read();
#pragma unroll 4
    for (uint32_t slab = first + 1; slab < end; ++slab) {
      record += step;
      merged.merge(read());
    }
  }
  chunks[warp][lane] = merged;
  __syncthreads();
  if (warp > 0 || !wanted) return;
  for (uint32_t chunk = 1; chunk < finish_warps; ++chunk)
    if (chunks[chunk][lane].count > A(0)) merged.merge(chunks[chunk][lane]);
  const int first_of_group = group * g.width;
  A* const moments = a.moments + (int64_t(bundle) * a.bundle_groups + group) * g.width * g.width;
  const auto place = [&](int from, int to) { return int64_t(from - first_of_group) * g.width + (to - first_of_group); };
  const A moment = quotient(merged.product, merged.count);
  store(moments + place(i, j), moment);
  if (symmetric && i < j) store(moments + place(j, i), moment);
  if (i != j) return;
  store(a.mean_u + first_channel + i, origin_u + merged.mean_u);
  if (a.mean_v != nullptr) store(a.mean_v + first_channel + i, origin_v + merged.mean_v);
}

}  // namespace torchfastnorm::cuda
