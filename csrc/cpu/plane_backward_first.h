// Backward of the plane norms, channels first: interface/plane_norm.h, the cuts in plane_kernels.h.
//
//      sums     of a channel (of all samples, or of one): g and g * (x - mean)      blocks merged in double, in order
//      finish   of a set, over its channels: the two means as coefficients;  sums of grad_weight and grad_bias
//      apply    grad_x = rstd * weight * g + of_d * (x - mean) + constant,  grad_residual = g
//
// g is formed twice, from grad_y, and where an activation follows from x, its statistics and the residual, or from the
// signs that forward kept. Where it takes an exp or erf, a small set's is kept in between (keeps_g). Memory: as
// forward, with grad_y read beside x. With constant statistics nothing is averaged, a block is applied from the
// first-level cache.
#pragma once
#include "plane_loops.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class T>
struct FirstBackward {
  using A = Accumulator<T>;
  using Call = PlaneBackwardCall;

  static TFN_INLINE bool goes_past(const Call& call) { return kStoresPast && call.past; }

  // What a kernel needs to know of a channel, and where its data begin.
  struct Channel {
    const T *grad_y, *x, *residual;
    const uint8_t *mask, *signs;
    int64_t signs_stride;
    A mean, scale, bias;
  };
  static TFN_INLINE Channel channel_of(const Call& call, int64_t channel, int64_t set, const PlaneBlock& block) {
    const PlaneNormBackward& a = *call.arguments;
    const int64_t spatial = call.geometry.spatial;
    return {static_cast<const T*>(a.grad_y) + block.begin,
            static_cast<const T*>(a.x) + block.begin,
            a.residual ? static_cast<const T*>(a.residual) + block.begin : nullptr,
            a.mask ? a.mask + block.mask_begin : nullptr,
            signs_of<T>(a.signs, block.first, spatial, block.skipped),
            block.step * sign_bytes(spatial, dtype_of<T>),
            plain(static_cast<const A*>(a.mean)[set]),
            plain(static_cast<const A*>(a.rstd)[set] * static_cast<const A*>(call.weight)[channel]),
            plain(static_cast<const A*>(call.bias)[channel])};
  }

  // Where g is kept, in the order of a block's elements but for Even{}, which come before Odd{}.
  static TFN_INLINE A* at_segment(A* kept, const PlaneBlock& block, int64_t segment) {
    return kept ? kept + segment * block.count : nullptr;
  }
  template <class LANES>
  static TFN_INLINE int64_t kept_at(int64_t c, LANES) {
    return std::is_same_v<LANES, Odd> ? c + kLanes<A> : c;
  }
  template <class LANES>
  static TFN_INLINE auto whole_or_part(LANES lanes) {
    if constexpr (std::is_same_v<LANES, Part>)
      return lanes;
    else
      return Whole{};
  }

  // to_next: bytes_to_next_set, or zero; kept: to be written, or null; here and in apply.
  template <Follow FOLLOW>
  static __attribute__((noinline)) GradientSums block_sums(const Call& call, int64_t channel, int64_t set,
                                                           const PlaneBlock& block, int64_t to_next, A* kept) {
    const Activation activation = call.arguments->activation;
    const Channel from = channel_of(call, channel, set, block);
    const Vector<A> mean = splat(from.mean), scale = splat(from.scale), bias = splat(from.bias);
    const int64_t stride = block.stride, mask_stride = block.mask_stride;
    const bool scattered = call.geometry.batch && call.geometry.spatial * int64_t(sizeof(T)) <= kShortPlane;
    const int64_t ahead = scattered ? call.geometry.spatial * int64_t(sizeof(T)) : kReadAhead;
    const T* const grad_x = to_next && call.arguments->grad_x && !goes_past(call)
                                ? static_cast<const T*>(call.arguments->grad_x) + block.begin
                                : nullptr;
    const auto fetch = [=, &from](int64_t segment, int64_t c, auto run) __attribute__((always_inline)) {
      const int64_t i = segment * stride + c;
      if (grad_x) fetch_run_to_write<run>(grad_x + i, 0);
      if (to_next) return;
      fetch_run_to_read<run>(from.grad_y + i, ahead);
      fetch_run_to_read<run>(from.x + i, ahead);
      if (from.residual) fetch_run_to_read<run>(from.residual + i, ahead);
    };
    double totals[2];
    sum_segments<T>(block.segments, block.count, totals, fetch,
                    [=, &from](int64_t segment, int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
                      const int64_t i = segment * stride + c;
                      Vector<A> d = load(from.x + i, lanes) - mean;
                      const T* const residual = from.residual ? from.residual + segment * stride : nullptr;
                      const uint8_t* const signs = from.signs ? from.signs + segment * from.signs_stride : nullptr;
                      Vector<A> g = gradient<FOLLOW, A>(load(from.grad_y + i, lanes), residual, signs, d, scale, bias,
                                                        activation, c, lanes);
                      if constexpr (FOLLOW == Follow::Anything)
                        if (from.mask) {
                          g = counted<A>(from.mask + segment * mask_stride + c, g, lanes);
                          d = counted<A>(from.mask + segment * mask_stride + c, d, lanes);
                        }
                      if constexpr (kSmooth<FOLLOW>)
                        if (kept) store(at_segment(kept, block, segment) + kept_at(c, lanes), g, whole_or_part(lanes));
                      s[0] += g;
                      s[1] += g * d;
                    });
    return {totals[0], totals[1]};
  }

  // Planes of a sample that are short runs: the sums of up to four at once. Where there are fewer, the first is in the
  // places of the others. Not where g may be kept: whether it is depends on which gradients are wanted, their bits must
  // not.
  static TFN_INLINE bool by_four(const Call& call) {
    const PlaneNormBackward& a = *call.arguments;
    return call.sums && !call.geometry.batch && !a.mask && !takes_long(a.activation) &&
           short_run<T>(call.geometry.spatial);
  }
  static TFN_INLINE PlaneBlock plane_block(const PlaneGeometry& g, int64_t slab, int64_t channel) {
    const int64_t plane = slab * g.channels + channel;
    return {plane * g.spatial, g.spatial, 1, g.spatial, 0, 0, plane, 1, 0};
  }
  template <Follow FOLLOW>
  static __attribute__((noinline)) void sums_of_four(const Call& call, int64_t slab, int64_t channel, int64_t channels,
                                                     GradientSums (&sums)[kShortGroup]) {
    const PlaneGeometry& g = call.geometry;
    const Activation activation = call.arguments->activation;
    Channel from[kShortGroup];
    for (int i = 0; i < kShortGroup; ++i) {
      const int64_t at = channel + (i < channels ? i : 0);
      from[i] = channel_of(call, at, slab * g.groups + at / g.per_set, plane_block(g, slab, at));
    }
    Four totals[2];
    sum_short_rows<A>(
        g.spatial, totals, [&](int64_t c, auto lanes, auto i, Vector<A>* s) __attribute__((always_inline)) {
          const Vector<A> d = load(from[i].x + c, lanes) - from[i].mean;
          const Vector<A> v = gradient<FOLLOW, A>(load(from[i].grad_y + c, lanes), from[i].residual, from[i].signs, d,
                                                  splat(from[i].scale), splat(from[i].bias), activation, c, lanes);
          s[0] += v;
          s[1] += v * d;
        });
    for (int i = 0; i < kShortGroup; ++i) sums[i] = {totals[0][i], totals[1][i]};
  }

  template <Follow FOLLOW>
  static __attribute__((noinline)) void apply(const Call& call, int64_t channel, int64_t set, const PlaneBlock& block,
                                              int64_t to_next, A* kept) {
    const PlaneNormBackward& a = *call.arguments;
    const Channel all = channel_of(call, channel, set, block);
    const Vector<A> mean = splat(all.mean), scale = splat(all.scale), bias = splat(all.bias);
    const A* const coefficients = static_cast<const A*>(call.coefficients) + 2 * set;
    const Vector<A> of_d = splat(plain(coefficients[0])), constant = splat(plain(coefficients[1]));
    const bool past = goes_past(call);
    for (int64_t segment = block.segments - 1; segment >= 0; --segment) {
      const int64_t skipped = segment * block.stride;
      const T *const x = all.x + skipped, *const grad_y = all.grad_y + skipped;
      const uint8_t* const signs = all.signs ? all.signs + segment * all.signs_stride : nullptr;
      const T* const residual = all.residual ? all.residual + skipped : nullptr;
      const A* const of_segment = at_segment(kept, block, segment);
      const uint8_t* const mask = all.mask ? all.mask + segment * block.mask_stride : nullptr;
      T* const grad_x = a.grad_x ? static_cast<T*>(a.grad_x) + block.begin + skipped : nullptr;
      T* const grad_residual = a.grad_residual ? static_cast<T*>(a.grad_residual) + block.begin + skipped : nullptr;
      const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
        if (to_next) {
          fetch_run_to_read<run>(x + c, to_next);
          fetch_run_to_read<run>(grad_y + c, to_next);
          if (residual) fetch_run_to_read<run>(residual + c, to_next);
        } else if (!past) {
          if (grad_x) fetch_run_to_write<run>(grad_x + c, kWriteAhead);
          if (grad_residual) fetch_run_to_write<run>(grad_residual + c, kWriteAhead);
        }
      };
      const auto gradients = [=, &a](int64_t c, auto lanes) __attribute__((always_inline)) -> Values<A, 2> {
        const Vector<A> d = load(x + c, lanes) - mean;
        Vector<A> g = kSmooth<FOLLOW> && of_segment ? load(of_segment + kept_at(c, lanes), whole_or_part(lanes))
                                                    : gradient<FOLLOW, A>(load(grad_y + c, lanes), residual, signs, d,
                                                                          scale, bias, a.activation, c, lanes);
        Vector<A> result = plane_gradient(g, d, scale, of_d, constant);
        if constexpr (FOLLOW == Follow::Anything)
          if (mask) {
            g = counted<A>(mask + c, g, lanes);
            result = counted<A>(mask + c, result, lanes);
          }
        return {{g, result}};
      };
      write_elements<T>(block.count, {grad_residual, grad_x}, nullptr, past, fetch, gradients);
    }
  }

  struct Kernels {
    GradientSums (*sums)(const Call&, int64_t channel, int64_t set, const PlaneBlock&, int64_t to_next, A* kept);
    void (*apply)(const Call&, int64_t channel, int64_t set, const PlaneBlock&, int64_t to_next, A* kept);
    void (*sums_of_four)(const Call&, int64_t slab, int64_t channel, int64_t channels, GradientSums (&)[kShortGroup]);
  };
  static Kernels kernels_of(const Call& call) {
    return by_follow(*call.arguments, [](auto follow) -> Kernels {
      return {block_sums<decltype(follow)::value>, apply<decltype(follow)::value>,
              sums_of_four<decltype(follow)::value>};
    });
  }

  // With constant statistics grad_x is written as well.
  static TFN_INLINE GradientSums sum_block(const Call& call, const Kernels& kernels, int64_t channel, int64_t set,
                                           const PlaneBlock& block, int64_t to_next, A* kept) {
    const GradientSums sums = call.sums ? kernels.sums(call, channel, set, block, to_next, kept) : GradientSums{};
    if (call.apply && !call.arguments->batch_statistics) kernels.apply(call, channel, set, block, 0, nullptr);
    return sums;
  }

  // The sums of one channel into those of grad_weight and grad_bias, and of its set.
  static TFN_INLINE void finish_channel(const Call& call, int64_t slab, int64_t channel, const GradientSums& sums,
                                        GradientSums& of_set) {
    const PlaneGeometry& g = call.geometry;
    const int64_t set = slab * g.groups + channel / g.per_set;
    double* const of_part = call.of_parts + slab / slabs_per_part(g) * 2 * g.channels + channel;
    const bool first = slab % slabs_per_part(g) == 0;
    const double of_weight = sums.g_centered * double(static_cast<const A*>(call.arguments->rstd)[set]);
    of_part[0] = first ? of_weight : of_part[0] + of_weight;
    of_part[g.channels] = first ? sums.g : of_part[g.channels] + sums.g;
    const double weight = double(static_cast<const A*>(call.weight)[channel]);
    of_set = {of_set.g + weight * sums.g, of_set.g_centered + weight * sums.g_centered};
  }

  static int64_t scratch(const PlaneGeometry& g) { return g.rows() * g.per_set * int64_t(sizeof(A)); }

  static void set(const Call& call, const Kernels& kernels, int64_t slab, int64_t group, A* kept) {
    const PlaneGeometry& g = call.geometry;
    const int64_t set = slab * g.groups + group;
    const Cut cut = cut_of(g.slab_samples, g.spatial);
    const bool constant = !call.arguments->batch_statistics, small = small_sets<T>(g);
    const int64_t to_next = constant || !call.apply ? 0 : bytes_to_next_set<T>(g);
    const auto kept_of = [&](int64_t channel, int64_t block) __attribute__((always_inline)) -> A* {
      const int64_t plane = cut.pieces > 1 ? block / cut.pieces : block * cut.planes, piece = block % cut.pieces;
      return kept ? kept + ((channel - group * g.per_set) * g.slab_samples + plane) * g.spatial + piece * kBlock
                  : nullptr;
    };
    GradientSums of_set{};
    for (int64_t channel = group * g.per_set; channel < (group + 1) * g.per_set; ++channel) {
      const Planes planes = planes_of(g, slab, channel, 1);
      GradientSums sums{};
      for (int64_t i = 0; i < cut.blocks; ++i) {
        const PlaneBlock block = block_of(planes, cut, g.spatial, i);
        const GradientSums part = sum_block(call, kernels, channel, set, block, to_next, kept_of(channel, i));
        sums = {sums.g + part.g, sums.g_centered + part.g_centered};
      }
      finish_channel(call, slab, channel, sums, of_set);
    }
    if (constant) return;
    finish_set<A>(call, set, of_set, call.counts[slab] * double(g.per_set));
    if (!call.apply) return;
    for (int64_t i = 0; i < g.per_set * cut.blocks; ++i) {
      const int64_t block = small ? i : g.per_set * cut.blocks - 1 - i,
                    channel = group * g.per_set + block / cut.blocks;
      kernels.apply(call, channel, set, block_of(planes_of(g, slab, channel, 1), cut, g.spatial, block % cut.blocks),
                    to_next, kept_of(channel, block % cut.blocks));
    }
  }

  // Of a sample, the groups [begin, end).
  static void sets_by_four(const Call& call, const Kernels& kernels, int64_t slab, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const int64_t first = begin * g.per_set, last = end * g.per_set;
    const bool small = small_sets<T>(g);
    const int64_t to_next = call.apply ? bytes_to_next_set<T>(g) * kShortGroup : 0;
    GradientSums of_four[kShortGroup];
    int64_t channel = first;
    for (int64_t group = begin; group < end; ++group) {
      const int64_t set = slab * g.groups + group, set_begin = channel;
      GradientSums of_set{};
      for (; channel < set_begin + g.per_set; ++channel) {
        const int64_t i = (channel - first) % kShortGroup;
        if (i == 0) kernels.sums_of_four(call, slab, channel, last - channel, of_four);
        finish_channel(call, slab, channel, of_four[i], of_set);
      }
      finish_set<A>(call, set, of_set, call.counts[slab] * double(g.per_set));
      for (int64_t i = 0; call.apply && i < g.per_set; ++i) {
        const int64_t c = small ? set_begin + i : channel - 1 - i;
        kernels.apply(call, c, set, plane_block(g, slab, c), to_next, nullptr);
      }
    }
  }

  static void sets(const Call& call, int64_t begin, int64_t end, void* scratch) {
    const PlaneGeometry& g = call.geometry;
    const Kernels kernels = kernels_of(call);
    A* const kept = call.keeps_g ? static_cast<A*>(scratch) : nullptr;
    for (int64_t i = begin, next; i < end; i = next) {
      const int64_t part = i / g.groups, group = i % g.groups, after = (part + 1) * g.groups;
      next = !by_four(call) ? i + 1 : after < end ? after : end;
      const int64_t first = part * slabs_per_part(g), last = first + slabs_per_part(g);
      for (int64_t slab = first; slab < last && slab < g.slabs; ++slab) {
        if (by_four(call))
          sets_by_four(call, kernels, slab, group, group + next - i);
        else
          set(call, kernels, slab, group, kept);
      }
    }
    finish_stores(goes_past(call));
  }

  // Of block i of all: which, and of what.
  struct Place {
    int64_t channel, set;
    PlaneBlock block;
  };
  static TFN_INLINE Place place_of(const PlaneGeometry& g, int64_t i) {
    const Cut cut = cut_of(g.slab_samples, g.spatial);
    const int64_t channel = i / cut.blocks % g.channels, slab = i / cut.blocks / g.channels;
    return {channel, slab * g.groups + channel / g.per_set,
            block_of(planes_of(g, slab, channel, 1), cut, g.spatial, i % cut.blocks)};
  }

  static void blocks(const Call& call, int64_t begin, int64_t end) {
    const Kernels kernels = kernels_of(call);
    if (by_four(call)) {  // of one block each
      const int64_t channels = call.geometry.channels;
      GradientSums of_four[kShortGroup];
      for (int64_t i = begin, next; i < end; i = next) {
        const int64_t channel = i % channels, left = end - i < channels - channel ? end - i : channels - channel;
        kernels.sums_of_four(call, i / channels, channel, left, of_four);
        next = i + (left < kShortGroup ? left : kShortGroup);
        for (int64_t at = i; at < next; ++at) call.of_blocks[at] = of_four[at - i];
      }
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const Place place = place_of(call.geometry, i);
      call.of_blocks[i] = sum_block(call, kernels, place.channel, place.set, place.block, 0, nullptr);
    }
    finish_stores(goes_past(call));
  }

  static void finish(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const int64_t blocks = cut_of(g.slab_samples, g.spatial).blocks;
    for (int64_t slab = 0; slab < g.slabs; ++slab)
      for (int64_t group = begin; group < end; ++group) {
        const GradientSums* next = call.of_blocks + (slab * g.channels + group * g.per_set) * blocks;
        GradientSums of_set{};
        for (int64_t channel = group * g.per_set; channel < (group + 1) * g.per_set; ++channel) {
          GradientSums sums{};
          for (int64_t block = 0; block < blocks; ++block, ++next)
            sums = {sums.g + next->g, sums.g_centered + next->g_centered};
          finish_channel(call, slab, channel, sums, of_set);
        }
        finish_set<A>(call, slab * g.groups + group, of_set, call.counts[slab] * double(g.per_set));
      }
  }

  static void pieces(const Call& call, int64_t begin, int64_t end) {
    const Kernels kernels = kernels_of(call);
    for (int64_t i = end - 1; i >= begin; --i) {
      const Place place = place_of(call.geometry, i);
      kernels.apply(call, place.channel, place.set, place.block, 0, nullptr);
    }
    finish_stores(goes_past(call));
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
