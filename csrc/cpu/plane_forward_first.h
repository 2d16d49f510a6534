// Forward of the plane norms, channels first: interface/plane_norm.h, the cuts in plane_kernels.h.
//
// Memory: where a thread takes a whole set, its planes are read for the statistics and found in cache when y is
// written; those of a large set as far as they are still there, last plane first. In phases (fewer sets than threads) x
// is read twice.
//
// Statistics: of a block sums of d = x - shift and d * d, the shift a mean of its first elements (of all, where four
// are taken at once), so that the squares that cancel in  sum(d * d) - sum(d)^2 / n  are at most some kBlock / kAsked
// times what remains. A constant set has variance zero. Blocks are merged in double.
#pragma once
#include "plane_loops.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

constexpr int64_t kAsked = 256;  // elements at least, if there are so many, whose mean is the shift of a block

template <class T>
struct FirstForward {
  using A = Accumulator<T>;
  using Call = PlaneForwardCall;

  static TFN_INLINE bool goes_past(const Call& call) { return kStoresPast && call.past; }

  // x_ahead: bytes to what is read next, where the hardware cannot guess it, or zero. y: to be fetched instead, or
  // null.
  template <bool MASKED>
  static __attribute__((noinline)) Moments block_moments(const Call& call, const PlaneBlock& block, int64_t x_ahead,
                                                         const T* y) {
    const T* const x = static_cast<const T*>(call.arguments->x) + block.begin;
    const uint8_t* const mask = MASKED ? call.arguments->mask + block.mask_begin : nullptr;
    const int64_t stride = block.stride, mask_stride = block.mask_stride;
    // Masked, any element may not count: all are asked for the shift. Else the first ones are, from several planes
    // where they are short.
    const bool all = MASKED || block.segments == 1;
    const int64_t asked = all ? block.segments : (kAsked + block.count - 1) / block.count;
    const int64_t shift_segments = asked < block.segments ? asked : block.segments;
    const int64_t shift_count = MASKED || block.count < 2 * kAsked ? block.count : 2 * kAsked;
    const auto nothing = [](int64_t, int64_t, auto) {};
    const auto fetch = [=](int64_t segment, int64_t c, auto run) __attribute__((always_inline)) {
      if (y)
        fetch_run_to_write<run>(y + segment * stride + c, 0);
      else if (x_ahead)
        fetch_run_to_read<run>(x + segment * stride + c, x_ahead);
    };
    double sum[1 + MASKED], sums[2];
    sum_segments<T>(shift_segments, shift_count, sum, nothing,
                    [=](int64_t segment, int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
                      const Vector<A> value = load(x + segment * stride + c, lanes);
                      if constexpr (MASKED) {
                        const uint8_t* of_p = mask + segment * mask_stride + c;
                        s[0] += counted<A>(of_p, value, lanes);
                        s[1] += counted<A>(of_p, splat(A(1)), lanes);
                      } else {
                        s[0] += value;
                      }
                    });
    const double count = MASKED ? sum[MASKED] : double(block.segments * block.count);
    if (MASKED && count == 0) return {};
    const A center = A(sum[0] / (MASKED ? count : double(shift_segments * shift_count)));
    sum_segments<T>(block.segments, block.count, sums, fetch,
                    [=](int64_t segment, int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
                      Vector<A> d = keep(load(x + segment * stride + c, lanes) - center, lanes);
                      if constexpr (MASKED) d = counted<A>(mask + segment * mask_stride + c, d, lanes);
                      s[0] += d;
                      s[1] += d * d;
                    });
    const double correction = sums[0] / count;
    return {count, double(center) + correction, sums[1] - sums[0] * correction};
  }

  // fetched: x has been, while apply ran over the block before, so y is to be.
  static TFN_INLINE Moments block_moments(const Call& call, PlaneBlock block, bool fetched) {
    const PlaneGeometry& g = call.geometry;
    const T* const y = fetched && !goes_past(call) ? static_cast<const T*>(call.arguments->y) + block.begin : nullptr;
    if (call.arguments->mask) return block_moments<true>(call, block, 0, y);
    if (block.stride == block.count) {
      block.count *= block.segments;
      block.segments = 1;
    }
    const bool scattered = g.batch && g.spatial * int64_t(sizeof(T)) <= kShortPlane;
    const int64_t x_ahead = scattered ? g.spatial * int64_t(sizeof(T)) : kReadAhead;
    return block_moments<false>(call, block, fetched ? 0 : x_ahead, y);
  }

  // One channel of the samples [begin, end), last first; a span of each plane. x_ahead: bytes to the x that is read
  // next, to be fetched instead of y, or zero.
  template <Follow FOLLOW>
  static __attribute__((noinline)) void apply(const Call& call, int64_t begin, int64_t end, int64_t channel,
                                              int64_t set, Span span, int64_t x_ahead) {
    const PlaneNormForward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const A rstd = static_cast<const A*>(call.rstd)[set];
    const Vector<A> mean = splat(plain(static_cast<const A*>(call.mean)[set]));
    const Vector<A> scale = splat(plain(A(rstd * static_cast<const A*>(call.weight)[channel])));
    const Vector<A> bias = splat(plain(static_cast<const A*>(call.bias)[channel]));
    const bool past = goes_past(call);
    for (int64_t sample = end - 1; sample >= begin; --sample) {
      const int64_t offset = (sample * g.channels + channel) * g.spatial + span.begin;
      const T* const x = static_cast<const T*>(a.x) + offset;
      const T* const residual = a.residual ? static_cast<const T*>(a.residual) + offset : nullptr;
      const uint8_t* const mask = a.mask ? a.mask + sample * g.spatial + span.begin : nullptr;
      T* const y = static_cast<T*>(a.y) + offset;
      uint8_t* const signs = signs_of<T>(a.signs, sample * g.channels + channel, g.spatial, span.begin);
      const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
        if (residual) fetch_run_to_read<run>(residual + c, x_ahead ? x_ahead : kReadAhead);
        if (x_ahead)
          fetch_run_to_read<run>(x + c, x_ahead);
        else if (!past)
          fetch_run_to_write<run>(y + c, kWriteAhead);
      };
      write_elements<T>(span.count, {y}, signs, past, fetch,
                        [=, &a](int64_t c, auto lanes) __attribute__((always_inline)) -> Values<A, 1> {
                          Vector<A> v = affine(Vector<A>(load(x + c, lanes) - mean), scale, bias);
                          v = followed<FOLLOW, A>(v, residual, a.activation, c, lanes);
                          if constexpr (FOLLOW == Follow::Anything)
                            if (mask) v = counted<A>(mask + c, v, lanes);
                          return {{v}};
                        });
    }
  }

  static auto apply_of(const Call& call) {
    return by_follow(*call.arguments, [](auto follow) { return apply<decltype(follow)::value>; });
  }

  // Sets that are short runs: the moments of up to four at once. Where there are fewer, the first is in the places of
  // the others.
  static TFN_INLINE bool by_four(const Call& call) {
    const PlaneGeometry& g = call.geometry;
    return !g.batch && !call.arguments->mask && short_run<T>(g.per_set * g.spatial);
  }
  static __attribute__((noinline)) void moments_of_four(const Call& call, int64_t set, int64_t sets,
                                                        Moments (&moments)[kShortGroup]) {
    const int64_t count = call.geometry.per_set * call.geometry.spatial;
    const T* const first = static_cast<const T*>(call.arguments->x) + set * count;
    const T* x[kShortGroup];
    for (int i = 0; i < kShortGroup; ++i) x[i] = first + (i < sets ? i : 0) * count;
    const FourMoments of_x = short_moments<A>(x, count);
    for (int i = 0; i < kShortGroup; ++i) moments[i] = {double(count), of_x.mean[i], of_x.squares[i]};
  }

  static void sets(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const auto apply_to = apply_of(call);
    const bool small = small_sets<T>(g), four = by_four(call);
    const int64_t ahead = bytes_to_next_set<T>(g) * (four ? kShortGroup : 1);
    const Cut cut = cut_of(planes_of(g, 0, 0, g.per_set).count, g.spatial);
    int64_t slab = begin / g.groups, channel = begin % g.groups * g.per_set;  // divisions are a good part of a tiny set
    Moments of_four[kShortGroup];
    for (int64_t set = begin; set < end; ++set) {
      Moments moments{};
      if (four) {
        if ((set - begin) % kShortGroup == 0) moments_of_four(call, set, end - set, of_four);
        moments = of_four[(set - begin) % kShortGroup];
      } else {
        const Planes planes = planes_of(g, slab, channel, g.per_set);
        for (int64_t block = 0; block < cut.blocks; ++block)
          moments = merge_two(moments, block_moments(call, block_of(planes, cut, g.spatial, block), ahead != 0));
      }
      finish_set<A>(call, set, moments);
      const int64_t sample = slab * g.slab_samples;
      for (int64_t i = 0; i < g.per_set; ++i)
        apply_to(call, sample, sample + g.slab_samples, channel + (small ? i : g.per_set - 1 - i), set, {0, g.spatial},
                 ahead);
      channel += g.per_set;
      if (channel == g.channels) {
        channel = 0;
        ++slab;
      }
    }
    finish_stores(goes_past(call));
  }

  static void moments(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    if (by_four(call)) {  // of one block each
      Moments of_four[kShortGroup];
      for (int64_t set = begin; set < end; set += kShortGroup) {
        moments_of_four(call, set, end - set, of_four);
        for (int64_t i = 0; i < kShortGroup && set + i < end; ++i) call.of_blocks[set + i] = of_four[i];
      }
      return;
    }
    const Cut cut = cut_of(planes_of(g, 0, 0, g.per_set).count, g.spatial);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t set = i / cut.blocks;
      const Planes planes = planes_of(g, set / g.groups, set % g.groups * g.per_set, g.per_set);
      call.of_blocks[i] = block_moments(call, block_of(planes, cut, g.spatial, i % cut.blocks), false);
    }
  }

  static void finish(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const Cut cut = cut_of(planes_of(g, 0, 0, g.per_set).count, g.spatial);
    for (int64_t set = begin; set < end; ++set) {
      Moments moments{};
      for (int64_t block = 0; block < cut.blocks; ++block)
        moments = merge_two(moments, call.of_blocks[set * cut.blocks + block]);
      finish_set<A>(call, set, moments);
    }
  }

  static void pieces(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const auto apply_to = apply_of(call);
    const int64_t of_plane = block_count(g.spatial);
    // Counted on, not divided again: divisions take as long as a tiny plane.
    int64_t piece = begin % of_plane, channel = begin / of_plane % g.channels, sample = begin / of_plane / g.channels;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t set = (g.batch ? 0 : sample * g.groups) + (g.per_set == 1 ? channel : channel / g.per_set);
      apply_to(call, sample, sample + 1, channel, set, block_span(piece, g.spatial), 0);
      if (++piece < of_plane) continue;
      piece = 0;
      if (++channel < g.channels) continue;
      channel = 0;
      ++sample;
    }
    finish_stores(goes_past(call));
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
