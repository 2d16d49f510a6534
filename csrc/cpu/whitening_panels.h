// Panels of whitening (whitening_kernels.h): copied from feature maps and back. Rows of a panel begin a whole number of
// vectors apart, and what lies between a row's end and the next whole vector is zero, so that sums of products may run
// over it. Where a run does not end with a whole vector, its last one overlaps the one before: copying twice does no
// harm.
#pragma once
#include "common/convert.h"
#include "whitening_kernels.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// body(i, lanes) for every vector of [0, count).
template <class A, class Body>
TFN_INLINE void for_overlapping(int64_t count, Body body) {
  constexpr int64_t kStep = kLanes<A>;
  if (count < kStep) return count > 0 ? body(int64_t(0), Part{count}) : void();
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) body(i, Whole{});
  if (i < count) body(count - kStep, Whole{});
}

// f(std::integral_constant of the lesser of count, which is at least 1, and MOST)
template <int MOST, class F>
TFN_INLINE void by_count(int64_t count, F f) {
  if constexpr (MOST > 1)
    if (count < MOST) return by_count<MOST - 1>(count, f);
  f(std::integral_constant<int, MOST>());
}

// The place of a panel in a feature map.
struct PanelPlace {
  int64_t channel, channels;    // the first one, counted over all groups, and how many
  int64_t position, positions;  // the same
};

// `count` runs of `elements` each, from element `begin` of a feature map on, `distance` apart. They hold `positions` of
// a place.
struct Runs {
  int64_t begin, elements, distance, count, positions;
};

// Brings the cache lines of a place near, a few at a time, while something else is computed: memory is then read during
// the arithmetic, and not between. SHARES is how many calls are foreseen.
template <class PANELS, class T>
class Ahead {
 public:
  Ahead(const WhiteningGeometry& g, const PanelPlace& place, const void* data, int64_t shares)
      : geometry_(g), place_(place), data_(static_cast<const T*>(data)) {
    if (!data) place_.positions = 0;
    const int64_t elements = place_.channels * place_.positions;
    share_ = (elements + kLine * shares - 1) / (kLine * shares);
    next();
  }
  template <bool WRITE>
  TFN_INLINE void fetch() {
    for (int64_t i = 0; i < share_ && runs_.count > 0; ++i) {
      if constexpr (WRITE)
        __builtin_prefetch(data_ + runs_.begin + offset_, 1);
      else
        __builtin_prefetch(data_ + runs_.begin + offset_, 0, 2);  // to the second level: the first is in use
      offset_ += kLine;
      if (offset_ < runs_.elements) continue;
      offset_ = 0;
      runs_.begin += runs_.distance;
      if (--runs_.count == 0) next();
    }
  }

 private:
  static constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  void next() {
    runs_ = {};
    if (done_ < place_.positions) runs_ = PANELS::runs(geometry_, place_, done_);
    done_ += runs_.positions;
  }
  const WhiteningGeometry& geometry_;
  PanelPlace place_;
  const T* data_;
  Runs runs_;
  int64_t share_ = 0, offset_ = 0, done_ = 0;
};

template <class T>
struct ChannelRows {
  using A = Accumulator<T>;

  static constexpr bool channels_first = true;
  // A cache line more than the row needs: rows a power of two apart would push each other out of the cache.
  static int64_t stride(int64_t, int64_t positions) {
    return rounded_up(positions, kPanelStep) + 64 / int64_t(sizeof(A));
  }
  static int64_t size(int64_t channels, int64_t positions) {
    return rounded_up(channels, kPanelStep) * stride(channels, positions);
  }

  // Of one sample, of every channel: memory is read in order where planes are short.
  static Runs runs(const WhiteningGeometry& g, const PanelPlace& place, int64_t done) {
    const int64_t sample = (place.position + done) / g.spatial, begin = (place.position + done) % g.spatial;
    const int64_t left = place.positions - done, count = g.spatial - begin < left ? g.spatial - begin : left;
    return {(sample * g.channels + place.channel) * g.spatial + begin, count, g.spatial, place.channels, count};
  }
  // body(offset of the run in x, channel in the panel, position in the panel, count)
  template <class Body>
  static TFN_INLINE void for_runs(const WhiteningGeometry& g, const PanelPlace& place, Body body) {
    for (int64_t done = 0; done < place.positions;) {
      const Runs some = runs(g, place, done);
      for (int64_t channel = 0; channel < some.count; ++channel)
        body(some.begin + channel * some.distance, channel, done, some.elements);
      done += some.positions;
    }
  }

  // Rows beyond the last channel, up to kPanelStep of them, are zero.
  static void clear(A* panel, int64_t channels, int64_t positions) {
    const int64_t step = stride(channels, positions);
    for (int64_t i = channels * step; i < size(channels, positions); ++i) panel[i] = A(0);
  }

  // panel = x - shift; shift is (channels), or null
  static __attribute__((noinline)) void pack(const WhiteningGeometry& g, const PanelPlace& place, const T* x,
                                             const A* shift, A* panel, int64_t step) {
    const int64_t last = place.positions / kLanes<A> * kLanes<A>;
    if (last < place.positions)
      for (int64_t channel = 0; channel < place.channels; ++channel)
        store(panel + channel * step + last, Vector<A>{}, Whole{});
    for_runs(g, place, [=](int64_t offset, int64_t channel, int64_t position, int64_t count) {
      const T* const from = x + offset;
      A* const to = panel + channel * step + position;
      const Vector<A> around = splat(shift ? shift[channel] : A(0));
      for_overlapping<A>(count, [=](int64_t i, auto lanes) __attribute__((always_inline)) {
        store(to + i, load(from + i, lanes) - around, lanes);
      });
    });
  }

  static __attribute__((noinline)) void sums(const A* panel, int64_t step, const PanelPlace& place, double* sums) {
    for (int64_t channel = 0; channel < place.channels; ++channel) {
      const A* const row = panel + channel * step;
      Vector<A> partial[4] = {};
      int64_t i = 0;
      for (; i + 4 * kLanes<A> <= place.positions; i += 4 * kLanes<A>)
        repeat<4>([&](auto part)
                      __attribute__((always_inline)) { partial[part] += load(row + i + part * kLanes<A>, Whole{}); });
      for (; i < place.positions; i += kLanes<A>) partial[0] += load(row + i, Whole{});
      const Vector<A> all = (partial[0] + partial[1]) + (partial[2] + partial[3]);
      if constexpr (std::is_same_v<A, float>)
        sums[channel] = total(low(all) + high(all));
      else
        sums[channel] = total(all);
    }
  }

  static __attribute__((noinline)) void unpack(const WhiteningGeometry& g, const PanelPlace& place, const A* panel,
                                               int64_t step, T* y) {
    for_runs(g, place, [=](int64_t offset, int64_t channel, int64_t position, int64_t count) {
      const A* const from = panel + channel * step + position;
      T* const to = y + offset;
      for_overlapping<A>(count, [=](int64_t i, auto lanes)
                                    __attribute__((always_inline)) { store(to + i, load(from + i, lanes), lanes); });
    });
  }
};

template <class T>
struct PositionRows {
  using A = Accumulator<T>;

  static constexpr bool channels_first = false;
  static int64_t stride(int64_t channels, int64_t) { return rounded_up(channels, kPanelStep); }
  static int64_t size(int64_t channels, int64_t positions) { return positions * stride(channels, positions); }

  static Runs runs(const WhiteningGeometry& g, const PanelPlace& place, int64_t) {
    return {place.position * g.channels + place.channel, place.channels, g.channels, place.positions, place.positions};
  }

  // Columns beyond the last channel are zero.
  static void clear(A* panel, int64_t channels, int64_t positions) {
    const int64_t step = stride(channels, positions);
    for (int64_t position = 0; position < positions; ++position)
      for (int64_t c = channels; c < step; ++c) panel[position * step + c] = A(0);
  }

  static __attribute__((noinline)) void pack(const WhiteningGeometry& g, const PanelPlace& place, const T* x,
                                             const A* shift, A* panel, int64_t step) {
    const T* from = x + place.position * g.channels + place.channel;
    for (int64_t position = 0; position < place.positions; ++position, from += g.channels, panel += step)
      for_overlapping<A>(place.channels, [=](int64_t i, auto lanes) __attribute__((always_inline)) {
        const Vector<A> v = load(from + i, lanes);
        store(panel + i, shift ? v - load(shift + i, lanes) : v, lanes);
      });
  }

  static __attribute__((noinline)) void sums(const A* panel, int64_t step, const PanelPlace& place, double* sums) {
    for (int64_t c = 0; c < place.channels; c += 4 * kLanes<A>)
      by_count<4>((place.channels - c + kLanes<A> - 1) / kLanes<A>, [&](auto vectors) {
        Vector<A> all[vectors] = {};
        for (int64_t position = 0; position < place.positions; ++position)
          repeat<vectors>([&](auto v) __attribute__((always_inline)) {
            all[v] += load(panel + position * step + c + v * kLanes<A>, Whole{});
          });
        for (int64_t i = 0; i < vectors * kLanes<A> && c + i < place.channels; ++i)
          sums[c + i] = double(all[i / kLanes<A>][i % kLanes<A>]);
      });
  }

  static __attribute__((noinline)) void unpack(const WhiteningGeometry& g, const PanelPlace& place, const A* panel,
                                               int64_t step, T* y) {
    T* to = y + place.position * g.channels + place.channel;
    for (int64_t position = 0; position < place.positions; ++position, to += g.channels, panel += step)
      for_overlapping<A>(place.channels, [=](int64_t i, auto lanes) __attribute__((always_inline)) {
        store(to + i, load(panel + i, lanes), lanes);
      });
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
