// From entries to sets, forward (moments) and backward (sums), whichever norm it is:
//
//   merge_moments, merge_sums   a list of entries to one, by a group of lanes or a block; its length fixes the order
//   EntryRange                  which entries of the table in global memory belong to a set, or to a channel
//   TileMoments, TileSums       ChannelsLast: a thread's channels over its rows, then over the rows of all threads
//   combine_cluster             entries of a cluster's blocks to the sets of its task
//
// Moments are merged by two passes over the entries (their mean, then squares around it; Chan, Golub, LeVeque 1983),
// relative to the first entry's mean, so that a large common mean costs no precision.
#pragma once
#include "plane_norm.cuh"

namespace torchfastnorm::cuda {

// A run of `inner` neighbours, `outer` times.
struct EntryRange {
  int64_t first, stride;
  unsigned outer, inner;

  __device__ __forceinline__ unsigned count() const { return outer * inner; }
  __device__ __forceinline__ int64_t operator[](unsigned i) const {
    if (outer == 1) return first + i;
    const unsigned o = i / inner;
    return first + o * stride + (i - o * inner);
  }
};

// Entries of the table (global memory) that make up a set; with Sets::Batch, a channel.
__device__ __forceinline__ EntryRange entries_of(const PlaneGeometry& g, Layout layout, Sets sets, int64_t set) {
  if (g.empty) return {0, 0, 0, 0};
  const int64_t chunks = g.chunks_divisor.value;
  const int width = sets == Sets::Batch ? 1 : g.width;
  if (layout == Layout::ChannelsFirst) {
    if (sets == Sets::Batch) return {set * chunks, g.channels * chunks, unsigned(g.samples), unsigned(chunks)};
    return {set * width * chunks, 0, 1, unsigned(width * chunks)};
  }
  const uint32_t per_domain = uint32_t(g.channels / width);
  const int64_t domain = sets == Sets::Batch ? 0 : uint32_t(set) / per_domain;
  const int64_t outer = sets == Sets::Batch ? g.domains * chunks : chunks;
  return {domain * chunks * g.channels + (set - domain * per_domain) * width, g.channels, unsigned(outer),
          unsigned(width)};
}

template <class A, class At, class Reduce>
__device__ __forceinline__ Entry<A> merge_moments(At at, unsigned count, unsigned thread, unsigned threads,
                                                  Reduce& reduce) {
  const A anchor = count > 0 ? at(0).first : A(0);
  A sums[2] = {};
  for (unsigned i = thread; i < count; i += threads) {
    const Entry<A> e = at(i);
    sums[0] += e.count;
    sums[1] += e.count * (e.first - anchor);
  }
  reduce(sums);
  const A mean = anchor + sums[1] * (sums[0] > A(0) ? quotient(A(1), sums[0]) : A(0));
  A squares[1] = {};
  for (unsigned i = thread; i < count; i += threads) {
    const Entry<A> e = at(i);
    const A distance = e.first - mean;
    squares[0] += e.second + e.count * (distance * distance);
  }
  reduce(squares);
  return {sums[0], mean, squares[0], A(0)};
}

// masked: the elements that count are added up too; nobody asks for them otherwise.
template <class A, class At, class Reduce>
__device__ __forceinline__ Entry<A> merge_sums(At at, unsigned count, unsigned thread, unsigned threads, bool masked,
                                               Reduce& reduce) {
  A total[1] = {}, sums[2] = {};
  for (unsigned i = thread; i < count; i += threads) {
    const Entry<A> e = at(i);
    total[0] += e.count;
    sums[0] += e.first;
    sums[1] += e.second;
  }
  if (masked) reduce(total);
  reduce(sums);
  return {total[0], sums[0], sums[1], A(0)};
}

// ---- ChannelsLast: the N channels of a thread

// Moments, relative to `anchor`: the mean of the first rows that the thread sees. Later rows are merged four at a time.
template <class A, int N>
struct TileMoments {
  static constexpr int values = 3 * N + 1;
  A count = A(0), anchor[N] = {}, mean[N] = {}, squares[N] = {};

  template <class T>
  __device__ __forceinline__ void add(const Packed<T> (&x)[plane_slots], const unsigned (&bits)[plane_slots]) {
    int rows = 0;
#pragma unroll
    for (int k = 0; k < plane_slots; ++k) rows += bits[k] != 0;
    if (rows == 0) return;
    const A share = quotient(A(1), A(rows)), total = count + A(rows), part = quotient(A(rows), total),
            cross = count * part;
    if (count == A(0)) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
#pragma unroll
        for (int k = 0; k < plane_slots; ++k) anchor[j] += A(widen(element(x[k], j)));  // zero where it does not count
        anchor[j] *= share;
      }
    }
    count = total;
    // A channel at a time: all values of the four rows at once would not fit in registers.
#pragma unroll
    for (int j = 0; j < N; ++j) {
      A v[plane_slots], local = A(0), around = A(0);
#pragma unroll
      for (int k = 0; k < plane_slots; ++k) {
        v[k] = bits[k] != 0 ? A(widen(element(x[k], j))) - anchor[j] : A(0);
        local += v[k];
      }
      local *= share;
#pragma unroll
      for (int k = 0; k < plane_slots; ++k) {
        const A d = bits[k] != 0 ? v[k] - local : A(0);
        around += d * d;
      }
      const A distance = local - mean[j];
      mean[j] += distance * part;
      squares[j] += around + distance * distance * cross;
    }
  }
  __device__ __forceinline__ void write(A* to, unsigned stride) const {
    to[0] = count;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      to[(3 * j + 1) * stride] = anchor[j];
      to[(3 * j + 2) * stride] = mean[j];
      to[(3 * j + 3) * stride] = squares[j];
    }
  }
  __device__ __forceinline__ void merge(const A* from, unsigned stride) {
    const A other = from[0], total = count + other;
    if (other == A(0)) return;
    const A part = quotient(other, total), cross = count * part;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (count == A(0)) anchor[j] = from[(3 * j + 1) * stride];
      const A distance = (from[(3 * j + 1) * stride] - anchor[j]) + (from[(3 * j + 2) * stride] - mean[j]);
      mean[j] += distance * part;
      squares[j] += from[(3 * j + 3) * stride] + distance * distance * cross;
    }
    count = total;
  }
  __device__ __forceinline__ A first(int j) const { return anchor[j] + mean[j]; }
  __device__ __forceinline__ A second(int j) const { return squares[j]; }
};

template <class A, int N>
struct TileSums {
  static constexpr int values = 2 * N + 1;
  A count = A(0), g[N] = {}, g_centered[N] = {};

  __device__ __forceinline__ void write(A* to, unsigned stride) const {
    to[0] = count;
#pragma unroll
    for (int j = 0; j < N; ++j) to[(2 * j + 1) * stride] = g[j], to[(2 * j + 2) * stride] = g_centered[j];
  }
  __device__ __forceinline__ void merge(const A* from, unsigned stride) {
    count += from[0];
#pragma unroll
    for (int j = 0; j < N; ++j) g[j] += from[(2 * j + 1) * stride], g_centered[j] += from[(2 * j + 2) * stride];
  }
  __device__ __forceinline__ A first(int j) const { return g[j]; }
  __device__ __forceinline__ A second(int j) const { return g_centered[j]; }
};

// The threads that own the same channels: the upper half hands its numbers to the lower one until one row is left.
// f(local channel, entry) is called for the tile's channels by the threads of that row.
template <class T, class Of, Team TEAM, class F>
__device__ __forceinline__ void finish_tile(const Slab<T, Layout::ChannelsLast, TEAM>& slab, Of& of,
                                            Accumulator<T>* tree, F f) {
  constexpr int N = Packed<T>::size;
  const unsigned stride = blockDim.x / 2;
  for (unsigned half = slab.row_threads / 2; half > 0; half /= 2) {
    if (slab.row_thread >= half && slab.row_thread < 2 * half)
      of.write(tree + threadIdx.x - half * slab.g.lanes, stride);
    __syncthreads();
    if (slab.row_thread < half) of.merge(tree + threadIdx.x, stride);
    __syncthreads();
  }
  if (slab.row_thread != 0) return;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int local = int(slab.lane) * N + j;
    if (local < slab.width) f(local, Entry<Accumulator<T>>{of.count, of.first(j), of.second(j), Accumulator<T>(0)});
  }
}

// ---- Team::Cluster

// merge(at, count, thread, threads, reduce) merges entries; weigh(entry, set, i) is the set's i-th entry as it counts.
// Leaves the sets of the task in shared.sets of every block of the cluster.
template <class T, class Merge, class Weigh>
__device__ __forceinline__ void combine_cluster(const PlaneGeometry& g, Layout layout, const PlaneShared<T>& shared,
                                                unsigned entries, unsigned sets, Merge merge, Weigh weigh) {
  using A = Accumulator<T>;
  const unsigned planned = unsigned(g.sets_per_task);  // the last task of all may have fewer sets
  const unsigned inner = layout == Layout::ChannelsLast ? unsigned(g.width) : g.width * g.chunks_divisor.value;
  const auto range_of = [&](unsigned set) -> EntryRange {
    if (planned == 1) return {0, 0, 1, entries};
    if (layout == Layout::ChannelsLast || g.sets != Sets::Batch) return {int64_t(set) * inner, 0, 1, inner};
    return {int64_t(set) * inner, int64_t(planned) * inner, unsigned(g.samples), inner};
  };
  __syncthreads();  // the entries are there
  unsigned lanes = 1;
  while (lanes < 32 && lanes < range_of(0).count()) lanes *= 2;
  GroupReduce reduce{lanes};
  const unsigned lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
  for (unsigned base = 0; base < sets; base += groups) {
    const unsigned set = base + threadIdx.x / lanes;
    const EntryRange range = range_of(set < sets ? set : 0);
    const auto at = [&](unsigned i) { return weigh(shared.entries[range[i]], set < sets ? set : 0, i); };
    const Entry<A> merged = merge(at, set < sets ? range.count() : 0u, lane, lanes, reduce);
    if (lane == 0 && set < sets) shared.sets[set] = merged;
  }
  __syncthreads();
  const unsigned blocks = Cluster::blocks();
  if (blocks == 1) return;
  for (unsigned i = threadIdx.x; i < sets * blocks; i += blockDim.x) {
    const unsigned peer = i / sets, set = i - peer * sets;
    *Cluster::map_shared(shared.inbox + Cluster::rank() * planned + set, peer) = shared.sets[set];
  }
  Cluster::sync();
  GroupReduce alone{1};
  for (unsigned set = threadIdx.x; set < sets; set += blockDim.x) {
    const auto at = [&](unsigned i) { return shared.inbox[i * planned + set]; };
    shared.sets[set] = merge(at, blocks, 0u, 1u, alone);
  }
  __syncthreads();
}

// ---- Team::Grid

// One scratch for all of a kernel's calls of combine_grid.
template <class A>
__device__ __forceinline__ ClusterSum<A> block_sum() {
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  return {scratch, inbox};
}

// f(set, merged) for `sets` sets of the table, each by one warp or, with long lists, one block; `range_of` and `weigh`
// as above. Called by the whole grid.
template <class A, class RangeOf, class Merge, class Weigh, class F>
__device__ __forceinline__ void combine_grid(const Entry<A>* table, int64_t sets, RangeOf range_of, Merge merge,
                                             Weigh weigh, F f) {
  if (sets == 0) return;
  const bool by_block = range_of(0).count() > 128;
  const unsigned warps = blockDim.x / 32;
  // `unroll 1`: to unroll these, compilers count their turns by a 64-bit division.
  if (by_block) {
    __syncthreads();  // an earlier call's sums have been read
    ClusterSum<A> reduce = block_sum<A>();
#pragma unroll 1
    for (int64_t set = blockIdx.x; set < sets; set += gridDim.x) {
      const EntryRange range = range_of(set);
      const auto at = [&](unsigned i) { return weigh(load_entry(table + range[i]), set, i); };
      const Entry<A> merged = merge(at, range.count(), threadIdx.x, blockDim.x, reduce);
      if (threadIdx.x == 0) f(set, merged);
    }
  } else {
    GroupReduce reduce{32};
#pragma unroll 1
    for (int64_t set = int64_t(blockIdx.x) * warps + threadIdx.x / 32; set < sets; set += int64_t(gridDim.x) * warps) {
      const EntryRange range = range_of(set);
      const auto at = [&](unsigned i) { return weigh(load_entry(table + range[i]), set, i); };
      const Entry<A> merged = merge(at, range.count(), threadIdx.x % 32, 32u, reduce);
      if (threadIdx.x % 32 == 0) f(set, merged);
    }
  }
}

}  // namespace torchfastnorm::cuda
