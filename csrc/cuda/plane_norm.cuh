// What the plane kernels share: their arguments, where the vectors of a thread lie, what a block keeps in shared
// memory.
//
// A block works on one slab at a time, in rounds of `plane_slots` vectors of 16 bytes a thread:
//
//   ChannelsFirst   a slab is a run of pieces; a piece is a plane or a part of one, `lanes` threads share it
//
//                     warp 0  | piece 0 | piece 1 | piece 2 | piece 3 |     (8 lanes; slots 1..3 the next pieces, or,
//                     warp 1  | piece 4 | ...                                with long pieces, the next vectors)
//
//   ChannelsLast    a slab is a tile of channels by a run of rows (pixels); `lanes` threads share a row, and a thread
//                   keeps its channels from row to row
//
//                     row 0   | lane 0 | lane 1 | ... | lane 7 |            (slots: the rows after the last row of all
//                     row 1   | lane 8 | ...                                 threads)
//
// Each piece, or each channel of a slab, leaves an Entry: its moments forward, its sums backward. What a set consists
// of is a matter of adding up entries (plane_combine.cuh), the same for every norm of the family.
#pragma once
#include "../interface/plane_plan.h"
#include "../interface/plane_signs.h"
#include "../math/activation.h"
#include "../math/divisor.h"
#include "../math/normalize.h"
#include "../math/renorm.h"
#include "../math/switch_norm.h"
#include "common/reduce.cuh"
#include "common/vector_access.cuh"
#include "plane_tiles.h"
#include "row_norm.cuh"

namespace torchfastnorm::cuda {

// Forward: first = mean, second = sum of squared deviations; of a finished set rstd, and with renorm the shift of
// x_hat. Backward: sum(g), sum(g * x_hat).
template <class A>
struct alignas(16) Entry {
  A count, first, second, shift;
};
// In global memory, 16 bytes at a time.
template <class A>
__device__ __forceinline__ void store_entry(Entry<A>* p, const Entry<A>& entry) {
#pragma unroll
  for (unsigned i = 0; i < sizeof entry / 16; ++i)
    store(reinterpret_cast<uint4*>(p) + i, reinterpret_cast<const uint4*>(&entry)[i]);
}
template <class A>
__device__ __forceinline__ Entry<A> load_entry(const Entry<A>* p) {
  Entry<A> entry;
#pragma unroll
  for (unsigned i = 0; i < sizeof entry / 16; ++i)
    reinterpret_cast<uint4*>(&entry)[i] = load_written(reinterpret_cast<const uint4*>(p) + i);
  return entry;
}

// A channel's number, of any dtype.
struct ChannelValues {
  const void* data;
  DType type;

  template <class A>
  __device__ __forceinline__ A at(int64_t channel, A missing) const {
    A value = missing;
    if (data != nullptr)
      with_type(type, [&](auto* t) {
        value = A(widen(load_written(static_cast<decltype(t)>(const_cast<void*>(data)) + channel)));
      });
    return value;
  }
};
template <class A>
__device__ __forceinline__ void store_channel(void* data, DType type, int64_t channel, A value) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    store(static_cast<T*>(data) + channel, narrow<T>(value));
  });
}

// The problem and its plan (interface/plane_plan.h), with what a kernel would otherwise have to divide by.
struct PlaneGeometry {
  Sets sets;
  int64_t samples, spatial;
  int channels, width;  // width: channels of a set
  int64_t set_count;
  Divisor channels_divisor, width_divisor;
  int lanes, slots_per_piece, kept, staged;
  bool aligned;      // every piece or row begins on a 16-byte boundary
  bool empty;        // no elements at all: sets without entries
  int64_t sign_run;  // bytes
  int64_t piece, slab, slabs, tasks, domains, domain_rows;
  int tile, sets_per_task, local_entries;
  int rounds, kept_rounds;
  Divisor chunks_divisor, tiles_divisor, task_divisor;  // task_divisor: pieces of one sample in a task
};

// What switch_norm.cuh works with; terms 0: the norm is another.
template <class A>
struct SwitchArguments {
  unsigned terms;
  bool constant_batch, average, unbiased;
  ChannelValues mean_logits, var_logits;
  Entry<A>* planes;  // (sets)
  // backward
  A *of_means, *of_vars;  // (sets + samples + channels): gradients of the means and vars of mean and rstd
  Entry<A>* sums;         // (switch_terms, channels): of the logits' gradients
  void *grad_mean_logits, *grad_var_logits;
  SwitchFactors<A> factors;
};

template <class A>
struct PlaneArguments {
  PlaneGeometry geometry;
  const void* x;
  const void* residual;
  ChannelValues weight, bias;
  const uint8_t* mask;
  Entry<A>* table;  // one for each piece (sample, channel, chunk) or (domain, chunk, channel); null: not wanted
  Activation activation;
  bool batch_statistics;
  Renorm renorm;
};

// ---- where things are

// One vector of a thread. Nothing may be touched at or beyond `limit` elements of the row.
struct Slot {
  int64_t row;    // element at which the row or piece begins
  int64_t mask;   // its first position in the mask
  int64_t entry;  // ChannelsFirst: of the piece, in the table
  int64_t signs;  // byte of the row's first vector
  int index;      // vector of the row
  int limit;
  int channel;  // of the piece; of the tile's first element
  int set;      // among those of the task (Cluster) or of all (Grid); of the tile's first element
};

template <class T, Layout LAYOUT, Team TEAM>
struct Slab;

template <class T, Team TEAM>
struct Slab<T, Layout::ChannelsFirst, TEAM> {
  static constexpr int vector = Packed<T>::size;
  const PlaneGeometry& g;
  uint32_t first, end;  // pieces of the task
  int64_t first_plane;
  unsigned lane, group, groups;

  __device__ __forceinline__ Slab(const PlaneGeometry& g, int64_t task, int64_t slab)
      : g(g),
        first(uint32_t(slab * g.slab)),
        lane(threadIdx.x % g.lanes),
        group(threadIdx.x / g.lanes),
        groups(blockDim.x / g.lanes) {
    const int64_t task_planes = int64_t(g.sets_per_task) * g.width;
    first_plane = TEAM == Team::Cluster ? task * task_planes : 0;
    const int64_t planes = TEAM == Team::Grid      ? g.samples * g.channels
                           : g.sets == Sets::Batch ? g.samples * task_planes
                                                   : task_planes;
    const int64_t last = (slab + 1) * g.slab, pieces = planes * g.chunks_divisor.value;
    end = uint32_t(last < pieces ? last : pieces);
  }
  __device__ __forceinline__ unsigned entries() const { return end > first ? end - first : 0; }
  __device__ __forceinline__ unsigned first_entry() const { return first; }
  __device__ __forceinline__ int64_t first_set(int64_t task) const { return task * g.sets_per_task; }
  __device__ __forceinline__ int sets(int64_t task) const {  // of this task: the last one may have fewer
    const int64_t rest = g.set_count - first_set(task);
    return int(rest < g.sets_per_task ? rest : g.sets_per_task);
  }
  // Channel of entry i of a task's set; `i` counts from `first_entry`.
  __device__ __forceinline__ int channel_of(int64_t global_set, unsigned i, unsigned first_entry) const {
    const uint32_t groups = uint32_t(g.channels / g.width);
    return int(uint32_t(global_set) % groups * g.width + (first_entry + i) / g.chunks_divisor.value);
  }
  // Number of the slot's piece in the task; slots of one piece are neighbours.
  __device__ __forceinline__ uint32_t piece(int round, int k) const {
    const unsigned in_round = g.slots_per_piece == 1 ? k * groups + group : group;
    return first + uint32_t(round) * groups * (plane_slots / g.slots_per_piece) + in_round;
  }
  __device__ __forceinline__ Slot slot(int round, int k) const {
    const uint32_t q = piece(round, k);
    Slot s{0, 0, 0, 0, int(lane + (g.slots_per_piece == 1 ? 0 : k) * g.lanes), 0, 0, 0};
    if (q >= end) return s;
    int64_t plane;
    uint32_t chunk, sample;
    if (TEAM == Team::Cluster && g.sets == Sets::Batch) {
      sample = g.task_divisor.quotient(q);
      const uint32_t rest = q - sample * g.task_divisor.value;
      s.set = int(g.chunks_divisor.quotient(rest));
      chunk = rest - uint32_t(s.set) * g.chunks_divisor.value;
      if (first_plane + s.set >= g.channels) return s;
      s.channel = int(first_plane) + s.set;
      plane = int64_t(sample) * g.channels + s.channel;
    } else {
      const uint32_t local = g.chunks_divisor.quotient(q);
      chunk = q - local * g.chunks_divisor.value;
      plane = first_plane + local;
      if (plane >= g.samples * g.channels) return s;
      sample = g.channels_divisor.quotient(uint32_t(plane));
      s.channel = int(uint32_t(plane) - sample * g.channels_divisor.value);
      s.set = g.sets == Sets::Batch ? s.channel : int(g.width_divisor.quotient(local));
    }
    const int64_t begin = chunk * g.piece;
    s.row = plane * g.spatial + begin;
    s.mask = sample * g.spatial + begin;
    s.entry = plane * g.chunks_divisor.value + chunk;
    s.signs = plane * g.sign_run + begin / Packed<T>::size;
    s.limit = int(g.spatial - begin < g.piece ? g.spatial - begin : g.piece);
    return s;
  }
};

template <class T, Team TEAM>
struct Slab<T, Layout::ChannelsLast, TEAM> {
  static constexpr int vector = Packed<T>::size;
  const PlaneGeometry& g;
  int64_t first_row, base;  // of the slab; element at which its tile begins
  int rows;
  int64_t entry;  // of the tile's first channel, in the table
  int64_t first_global_set;
  int channel, width, set;
  unsigned lane, row_thread, row_threads;

  __device__ __forceinline__ Slab(const PlaneGeometry& g, int64_t task, int64_t slab)
      : g(g), lane(threadIdx.x % g.lanes), row_thread(threadIdx.x / g.lanes), row_threads(blockDim.x / g.lanes) {
    const uint32_t chunks = g.chunks_divisor.value, of_tiles = uint32_t(TEAM == Team::Cluster ? task : slab);
    const uint32_t domain_chunk = g.tiles_divisor.quotient(of_tiles);
    channel = int(of_tiles - domain_chunk * g.tiles_divisor.value) * g.tile;
    const int64_t domain = TEAM == Team::Cluster ? domain_chunk : g.chunks_divisor.quotient(domain_chunk);
    const int64_t chunk = TEAM == Team::Cluster ? slab : domain_chunk - domain * chunks;
    width = g.channels - channel < g.tile ? g.channels - channel : g.tile;
    const int64_t begin = chunk * g.slab, rest = g.domain_rows - begin;
    first_row = domain * g.domain_rows + begin;
    rows = int(rest < 0 ? 0 : rest < g.slab ? rest : g.slab);
    base = first_row * g.channels + channel;
    entry = (domain * chunks + chunk) * g.channels + channel;
    set = int(domain) * (g.channels / g.width);
    first_global_set = int64_t(set) + g.width_divisor.quotient(uint32_t(channel));
  }
  __device__ __forceinline__ Slot slot(int round, int k) const {
    const int row = (round * plane_slots + k) * int(row_threads) + int(row_thread);
    const int index = recomputed(int(lane));
    if (row >= rows) return {base, first_row, 0, 0, index, 0, channel, set};
    // A slab has fewer than 2^31 elements (plane_arguments.h).
    const int64_t signs = (first_row + row) * g.sign_run + channel / Packed<T>::size;
    return {base + row * g.channels, first_row + row, 0, signs, index, width, channel, set};
  }
  __device__ __forceinline__ unsigned entries() const { return unsigned(width); }
  __device__ __forceinline__ unsigned first_entry() const { return 0; }
  __device__ __forceinline__ int64_t first_set(int64_t) const { return first_global_set; }
  __device__ __forceinline__ int sets(int64_t) const { return int(g.width_divisor.quotient(uint32_t(width))); }
  __device__ __forceinline__ int channel_of(int64_t global_set, unsigned i, unsigned) const {
    const uint32_t groups = uint32_t(g.channels / g.width);
    return int(uint32_t(global_set) % groups * g.width + i);
  }
  // Which set (as Slot::set) channel `local` of the tile belongs to.
  __device__ __forceinline__ int set_of(int local) const {
    if (TEAM == Team::Cluster) return int(g.width_divisor.quotient(uint32_t(local)));
    return set + int(g.width_divisor.quotient(uint32_t(channel + local)));
  }
};

template <class T>
__device__ __forceinline__ Row<T, Packed<T>::size, Accumulator<T>> row_at(const void* data, const Slot& s,
                                                                          bool aligned) {
  Row<T, Packed<T>::size, Accumulator<T>> row;
  row.data = const_cast<T*>(static_cast<const T*>(data)) + s.row;
  row.aligned = aligned && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  return row;
}

// Which elements of a slot's vector count, a bit each: those within the limit that the mask does not leave out.
// `per_element`: the mask runs along the vector (ChannelsFirst), not across (ChannelsLast: one position a row).
template <int N, bool PER_ELEMENT>
__device__ __forceinline__ unsigned counted(const Slot& s, const uint8_t* mask) {
  const int rest = s.limit - s.index * N;
  unsigned bits = rest >= N ? (1u << N) - 1 : rest <= 0 ? 0u : (1u << rest) - 1;
  if (mask == nullptr || bits == 0) return bits;
  if constexpr (PER_ELEMENT) {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if ((bits >> j & 1) && load_cached(mask + s.mask + s.index * N + j) == 0) bits &= ~(1u << j);
    return bits;
  } else {
    return load_cached(mask + s.mask) != 0 ? bits : 0u;
  }
}

// A byte for each slot of a round, the first in the lowest: the signs of its elements (interface/plane_signs.h).
template <class SLAB>
__device__ __forceinline__ unsigned load_signs(const uint8_t* signs, const SLAB& slab, int round) {
  static_assert(plane_slots <= 4);
  unsigned all = 0;
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) {
    const Slot s = slab.slot(round, k);
    if (s.index * SLAB::vector < s.limit) all |= unsigned(load_cached(signs + s.signs + s.index)) << 8 * k;
  }
  return all;
}
template <int N, class A>
__device__ __forceinline__ void store_signs(uint8_t* signs, const Slot& s, const A (&v)[N]) {
  if (s.index * N >= s.limit) return;
  unsigned bits = 0;
#pragma unroll
  for (int j = 0; j < N; ++j) bits |= v[j] > A(0) ? 1u << j : 0u;
  store(signs + s.signs + s.index, uint8_t(bits));
}

// Elements that do not count become zero.
template <class T>
__device__ __forceinline__ void drop_uncounted(Packed<T>& packed, unsigned bits) {
  constexpr int N = Packed<T>::size;
  T elements[N];
  memcpy(elements, packed.word, sizeof elements);
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (!(bits >> j & 1)) elements[j] = narrow<T>(Accumulator<T>(0));
  memcpy(packed.word, elements, sizeof elements);
}

// ---- shared memory of a block: the rounds it keeps, and (Cluster) entries, statistics and inbox; (ChannelsLast) tree

template <class T>
struct PlaneShared {
  using A = Accumulator<T>;
  uint4* rounds;      // [round][tensor][slot][thread]: only their owner touches them
  uint4* staged;      // [slot][thread]: one tensor of the round that apply is at
  Entry<A>* entries;  // of the slab
  Entry<A>* sets;     // of the task: what the combine step found
  Entry<A>* inbox;    // [block of the cluster][set], written by the other blocks
  A* tree;            // ChannelsLast, finish_tile
  A* columns;         // ChannelsLast, [value][channel of the tile]: see fill_columns

  __device__ __forceinline__ PlaneShared(const PlaneGeometry& g, unsigned char* bytes, bool cluster_team) {
    rounds = reinterpret_cast<uint4*>(bytes);
    staged = rounds + int64_t(g.kept_rounds + !cluster_team) * g.kept * plane_slots * blockDim.x;
    entries = reinterpret_cast<Entry<A>*>(staged + g.staged * plane_slots * blockDim.x);
    sets = entries + (cluster_team ? g.local_entries : 0);
    inbox = sets + (cluster_team ? g.sets_per_task : 0);
    columns =
        reinterpret_cast<A*>(inbox + (cluster_team && Cluster::blocks() > 1 ? Cluster::blocks() * g.sets_per_task : 0));
    tree = columns + column_values * g.lanes * Packed<T>::size;
  }
  // `ordinal`: of a round among the block's; those that are not kept take the last place by turns.
  __device__ __forceinline__ Packed<T>& kept(const PlaneGeometry& g, int ordinal, int tensor, int k) const {
    const int place = ordinal < g.kept_rounds ? ordinal : g.kept_rounds;
    return reinterpret_cast<Packed<T>*>(
        rounds)[((place * g.kept + tensor) * plane_slots + k) * int(blockDim.x) + int(threadIdx.x)];
  }
  __device__ __forceinline__ Packed<T>& stage(int k) const {
    return reinterpret_cast<Packed<T>*>(staged)[k * int(blockDim.x) + int(threadIdx.x)];
  }
};

// All vectors of a round are on their way before the first is put in its place: place(k) is where.
template <class T, Layout LAYOUT, Team TEAM, class Place>
__device__ __forceinline__ void load_round(const void* data, const Slab<T, LAYOUT, TEAM>& slab, int round,
                                           Place place) {
  Packed<T> vectors[plane_slots];
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) {
    const Slot s = slab.slot(round, k);
    vectors[k] = row_at<T>(data, s, slab.g.aligned).template load<Access::Once>(s.index, s.limit);
  }
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) place(k) = vectors[k];
}

// ---- activation of a vector

// The compiler's copy of each activation is large: callers loop over slots without unrolling.
template <class F>
__device__ __forceinline__ void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::None:
      return f(std::integral_constant<Activation, Activation::None>());
    case Activation::Relu:
      return f(std::integral_constant<Activation, Activation::Relu>());
    case Activation::LeakyRelu:
      return f(std::integral_constant<Activation, Activation::LeakyRelu>());
    case Activation::Elu:
      return f(std::integral_constant<Activation, Activation::Elu>());
    case Activation::Silu:
      return f(std::integral_constant<Activation, Activation::Silu>());
    case Activation::Gelu:
      return f(std::integral_constant<Activation, Activation::Gelu>());
    default:
      return f(std::integral_constant<Activation, Activation::GeluTanh>());
  }
}

// ---- what a piece (ChannelsFirst: one for all elements) or the elements of a vector (ChannelsLast) are normalised
// with

template <class A, int N>
struct Coefficients {
  A mean[N], scale[N], bias[N];  // scale = rstd * weight
  A slope[N], offset[N];         // of grad_x: math/normalize.h, plane_gradient
};
template <class A, int COUNT>
__device__ __forceinline__ A pick(const A (&values)[COUNT], int j) {  // the only one, or the j-th
  return values[COUNT == 1 ? 0 : j];
}

// ChannelsLast: of(channel of the tile) says what it is normalised with. The block finds that out together, because
// each channel is the business of many threads; a thread then reads its N channels' from shared memory once a round: to
// keep them in registers while a round is loaded would not leave room for that. VALUES: how many of Coefficients' five.
template <int VALUES, class T, Team TEAM, class Of>
__device__ __forceinline__ void fill_columns(const Slab<T, Layout::ChannelsLast, TEAM>& slab,
                                             const PlaneShared<T>& shared, Of of) {
  using A = Accumulator<T>;
  const int stride = slab.g.lanes * Packed<T>::size;
  __syncthreads();  // the previous ones have been read
#pragma unroll 1
  for (int local = int(threadIdx.x); local < stride; local += int(blockDim.x)) {
    const Coefficients<A, 1> one = local < slab.width ? of(local) : Coefficients<A, 1>{};
    const A values[column_values] = {one.mean[0], one.scale[0], one.bias[0], one.slope[0], one.offset[0]};
#pragma unroll
    for (int i = 0; i < VALUES; ++i) shared.columns[i * stride + local] = values[i];
  }
  __syncthreads();
}
template <int VALUES, class T, Team TEAM>
__device__ __forceinline__ void read_columns(const Slab<T, Layout::ChannelsLast, TEAM>& slab,
                                             const PlaneShared<T>& shared,
                                             Coefficients<Accumulator<T>, Packed<T>::size>& c) {
  constexpr int N = Packed<T>::size;
  const int stride = slab.g.lanes * N;
  const Accumulator<T>* const mine = shared.columns + slab.lane * N;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    c.mean[j] = mine[j], c.scale[j] = mine[stride + j], c.bias[j] = mine[2 * stride + j];
    if constexpr (VALUES == column_values) c.slope[j] = mine[3 * stride + j], c.offset[j] = mine[4 * stride + j];
  }
}

}  // namespace torchfastnorm::cuda
