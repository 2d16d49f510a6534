// Moments of whitening (interface/batch_whitening.h): per group the means of u and v, and
//
//   C[i][j] = sum over positions of (u[i] - mean_u[i]) * (v[j] - mean_v[j])
//
// of which a thread takes one block of channels by another, for one chunk of positions, panel by panel. A panel is
// packed around the mean so far of its chunk, shift, rounded to an accumulator. With S the sum of (u - shift_u) (v -
// shift_v)' over the n positions of the panel, and d = (sum of u - shift_u) / n, in double:
//
//   of the panel   mean = shift + d                               C = S - n d_u d_v'
//   of both        C = C_before + C + weight e_u e_v'             e = mean - mean_before
//                                                                 weight = n_before n / (n_before + n)
//
// Around the mean so far what cancels, n d d', is at most twice what it adds to the chunk's own C: at most two bits are
// lost, however the mean may wander, and a mean of any size costs nothing. The first panel is packed around the mean of
// its first positions. S is summed as accumulators over a panel, all else in double. So float squares must not exceed
// the largest float over the positions of a panel: |u - mean_u| up to some 8e17.
#pragma once
#include "whitening_products.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

constexpr int64_t kFirstPositions = 64;

// What is known of a chunk of positions, or of several, of a pair of blocks.
struct MomentState {
  double *mean_u, *mean_v;  // the same for a block with itself
  double* products;         // (channels of u, stride): C
};
inline MomentState state_of(const WhiteningMomentsCall& call, int64_t index, bool same) {
  double* const base = call.states + index * call.state_size();
  return {base, same ? base : base + call.stride(), base + 2 * call.stride()};
}

// Channels of u and of v, counted in the group.
struct BlockPair {
  int64_t u, v;  // blocks
  int64_t u_begin, u_size, v_begin, v_size;
  bool same;  // a block with itself: only j >= i is formed
};
inline BlockPair block_pair(const WhiteningMomentsCall& call, int64_t index) {
  const EvenCut& blocks = call.blocks;
  int64_t u = 0, before = call.symmetric() ? blocks.parts : 0;
  if (call.symmetric())
    for (; index >= before; ++u, --before) index -= before;
  else
    u = index / blocks.parts, index %= blocks.parts;
  const int64_t v = call.symmetric() ? u + index : index;
  return {u, v, blocks.begin(u), blocks.size_of(u), blocks.begin(v), blocks.size_of(v), call.symmetric() && u == v};
}

// What a panel, or a chunk, adds to the mean: count / (before + count) of the distance.
inline void merge_means(double* mean, const double* distance, int64_t channels, double before, double count) {
  const double share = count / (before + count);
  for (int64_t c = 0; c < channels; ++c) mean[c] += distance[c] * share;
}

template <class ROWS>
struct MomentChunks;
template <template <class> class ROWS, class T>
struct MomentChunks<ROWS<T>> {
  using Panels = ROWS<T>;
  using A = Accumulator<T>;
  using Call = WhiteningMomentsCall;

  static constexpr int64_t kPositions = moments_panel(Panels::channels_first);

  // One tensor's side of a panel.
  struct Side {
    A* panel;
    A shift[kWidestBlock];
    double difference[kWidestBlock];  // d
    double distance[kWidestBlock];    // e
  };

  struct Scratch {
    Side u, v;
    A* products;
  };
  static int64_t step(int64_t channels) { return Panels::stride(channels, kPositions); }
  static int64_t panel_bytes(const Call& call) {
    return rounded_up(Panels::size(call.blocks.size, kPositions) * int64_t(sizeof(A)), 64);
  }
  static int64_t scratch(const Call& call) {
    return 64 + 2 * panel_bytes(call) + call.stride() * call.stride() * int64_t(sizeof(A));
  }

  // Packs a panel around the mean so far, and merges its mean: difference, distance.
  static __attribute__((noinline)) void take(const Call& call, const PanelPlace& place, const void* x, Side& side,
                                             double* mean, int64_t before) {
    const T* const data = static_cast<const T*>(x);
    const int64_t step = MomentChunks::step(place.channels);
    if (before == 0) {
      PanelPlace first = place;
      if (first.positions > kFirstPositions) first.positions = kFirstPositions;
      Panels::pack(call.geometry, first, data, nullptr, side.panel, step);
      Panels::sums(side.panel, step, first, mean);
      for (int64_t c = 0; c < place.channels; ++c) mean[c] /= double(first.positions);
    }
    for (int64_t c = 0; c < place.channels; ++c) side.shift[c] = A(mean[c]);
    Panels::pack(call.geometry, place, data, side.shift, side.panel, step);
    Panels::sums(side.panel, step, place, side.difference);
    for (int64_t c = 0; c < place.channels; ++c) {
      side.difference[c] /= double(place.positions);
      side.distance[c] = double(side.shift[c]) - mean[c] + side.difference[c];
    }
    merge_means(mean, side.distance, place.channels, double(before), double(place.positions));
  }

  static __attribute__((noinline)) void merge_products(const BlockPair& pair, const MomentState& state, int64_t stride,
                                                       const A* products, const Side& u, const Side& v, double before,
                                                       double count) {
    const double weight = before * count / (before + count);
    for (int64_t i = 0; i < pair.u_size; ++i) {
      const double own = -count * u.difference[i], other = weight * u.distance[i];
      double* const row = state.products + i * stride;
      for (int64_t j = pair.same ? i : 0; j < pair.v_size; ++j) {
        const double added = double(products[i * stride + j]) + own * v.difference[j] + other * v.distance[j];
        row[j] = before > 0 ? row[j] + added : added;
      }
    }
  }

  struct Item {
    int64_t group, part, state;
    BlockPair pair;
  };
  static Item item_at(const Call& call, int64_t index) {
    const WhiteningGeometry& g = call.geometry;
    const Visit at = visit(index, g.groups * call.block_pairs(), call.chunks.parts, g.width);
    return {at.group / call.block_pairs(), at.part, at.group * call.chunks.parts + at.part,
            block_pair(call, at.group % call.block_pairs())};
  }
  struct Places {
    PanelPlace u, v;
  };
  static Places places_at(const Call& call, const Item& item, int64_t panel) {
    const EvenCut panels = even_cut(call.chunks.size_of(item.part), kPositions, kPanelStep);
    const int64_t begin = call.chunks.begin(item.part) + panels.begin(panel), count = panels.size_of(panel);
    const int64_t channel = item.group * call.geometry.width;
    return {{channel + item.pair.u_begin, item.pair.u_size, begin, count},
            {channel + item.pair.v_begin, item.pair.v_size, begin, count}};
  }

  static void chunk(const Call& call, const Item& item, const Item* next, const MomentState& state, Scratch& scratch) {
    const WhiteningMoments& a = *call.arguments;
    const BlockPair& pair = item.pair;
    const int64_t panels = even_cut(call.chunks.size_of(item.part), kPositions, kPanelStep).parts;
    Panels::clear(scratch.u.panel, pair.u_size, kPositions);
    Panels::clear(scratch.v.panel, pair.v_size, kPositions);
    int64_t before = 0;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const Places places = places_at(call, item, panel);
      const int64_t count = places.u.positions;
      take(call, places.u, a.u, scratch.u, state.mean_u, before);
      if (!pair.same) take(call, places.v, a.v, scratch.v, state.mean_v, before);
      const Side& v = pair.same ? scratch.u : scratch.v;

      const bool more = panel + 1 < panels || next;
      const Places following = panel + 1 < panels ? places_at(call, item, panel + 1)
                               : more             ? places_at(call, *next, 0)
                                                  : places;
      const int64_t calls = product_calls(Panels(), pair.u_size, pair.v_size, count, pair.same);
      Ahead<Panels, T> ahead_u(call.geometry, following.u, more ? a.u : nullptr, calls);
      Ahead<Panels, T> ahead_v(call.geometry, following.v, more && !pair.same ? a.v : nullptr, calls);
      panel_products(Panels(), scratch.u.panel, step(pair.u_size), v.panel, step(pair.v_size), pair.u_size, pair.v_size,
                     count, pair.same, scratch.products, call.stride(), [&] {
                       ahead_u.template fetch<false>();
                       ahead_v.template fetch<false>();
                     });
      merge_products(pair, state, call.stride(), scratch.products, scratch.u, v, double(before), double(count));
      before += count;
    }
  }

  static void chunks(const Call& call, int64_t begin, int64_t end, void* memory) {
    char* free = reinterpret_cast<char*>(rounded_up(reinterpret_cast<int64_t>(memory), 64));
    Scratch scratch;
    scratch.u.panel = reinterpret_cast<A*>(free);
    scratch.v.panel = reinterpret_cast<A*>(free + panel_bytes(call));
    scratch.products = reinterpret_cast<A*>(free + 2 * panel_bytes(call));
    for (int64_t index = begin; index < end; ++index) {
      const Item item = item_at(call, index), next = item_at(call, index + 1 < end ? index + 1 : index);
      chunk(call, item, index + 1 < end ? &next : nullptr, state_of(call, item.state, item.pair.same), scratch);
    }
  }
};

// Merges the chunks of one row of a block pair, divides by the number of positions, and writes what is asked for.
template <class A>
__attribute__((noinline)) void finish_row(const WhiteningMomentsCall& call, int64_t pairs, const BlockPair& pair,
                                          int64_t i) {
  const WhiteningMoments& a = *call.arguments;
  const int64_t width = call.geometry.width, group = pairs / call.block_pairs();
  const int64_t first = pair.same ? i : 0, channel = pair.u_begin + i;
  A* const moments = static_cast<A*>(a.moments) + group * width * width;
  A* const to = moments + channel * width + pair.v_begin;
  double row[kWidestBlock], mean_v[kWidestBlock], mean_u = 0, before = 0;
  for (int64_t part = 0; part < call.chunks.parts; ++part) {
    const MomentState state = state_of(call, pairs * call.chunks.parts + part, pair.same);
    const double* const products = state.products + i * call.stride();
    const double count = double(call.chunks.size_of(part)), share = count / (before + count);
    if (part == 0) {
      mean_u = state.mean_u[i];
      std::memcpy(mean_v, state.mean_v, size_t(pair.v_size) * sizeof(double));
      std::memcpy(row, products, size_t(pair.v_size) * sizeof(double));
    } else {
      const double distance_u = state.mean_u[i] - mean_u, weight = before * share * distance_u;
      for (int64_t j = first; j < pair.v_size; ++j) {
        const double distance = state.mean_v[j] - mean_v[j];
        row[j] += products[j] + weight * distance;
        mean_v[j] += share * distance;
      }
      mean_u += share * distance_u;
    }
    before += count;
  }
  const double inverse = 1 / before;
  for (int64_t j = first; j < pair.v_size; ++j) to[j] = A(row[j] * inverse);
  if (call.symmetric())
    for (int64_t j = first; j < pair.v_size; ++j) moments[(pair.v_begin + j) * width + channel] = to[j];
  if (pair.u != pair.v) return;
  static_cast<A*>(a.mean_u)[group * width + channel] = A(mean_u);
  if (a.mean_v) static_cast<A*>(a.mean_v)[group * width + channel] = A(mean_v[i]);
}

template <class A>
void finish_rows(const WhiteningMomentsCall& call, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t pairs = item / call.blocks.size, i = item % call.blocks.size;
    const BlockPair pair = block_pair(call, pairs % call.block_pairs());
    if (i < pair.u_size) finish_row<A>(call, pairs, pair, i);
  }
}

inline WhiteningMomentsKernels whitening_moments_kernels(const WhiteningMomentsCall& call) {
  return by_type(call.arguments->type, [&](auto element) -> WhiteningMomentsKernels {
    using T = decltype(element);
    using First = MomentChunks<ChannelRows<T>>;
    using Last = MomentChunks<PositionRows<T>>;
    if (call.geometry.channels_first) return {First::scratch, First::chunks, finish_rows<Accumulator<T>>};
    return {Last::scratch, Last::chunks, finish_rows<Accumulator<T>>};
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
