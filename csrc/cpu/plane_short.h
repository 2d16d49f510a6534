// BatchNorm, channels first, planes of a few vectors: 32 x 2048 x 7 x 7, 32 x 256 x 14 x 14. The planes of one channel
// lie far apart, often at the same place of a page, where they push each other out of the cache; those of neighbouring
// channels lie side by side. So a tile of channels is taken at a time,
//
//      for each sample      for each channel of the tile      its plane: a few vectors, into the channel's sums
//
// and memory is read in runs of a tile's planes. Otherwise as plane_forward_first.h and plane_backward_first.h say. A
// channel's result does not depend on its tile; without a mask, and statistics never in phases (short_planes).
#pragma once
#include "plane_backward_first.h"
#include "plane_forward_first.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

constexpr int64_t kShortTile = 32;  // channels, at most
inline int64_t short_tile(const PlaneGeometry& g) { return g.spatial <= 64 ? kShortTile : kShortTile / 4; }
constexpr int64_t kShortElements = 2048;  // of a tile of one sample, at most

// totals[channel][i] = sum over samples of what body(plane, c, channel, lanes, sums) adds of element c of a plane,
// planes counted from the tile's first; a lane adds up some 16 numbers before it goes over into double.
template <class T, int SUMS, class Fetch, class Body>
TFN_INLINE void sum_tile(const PlaneGeometry& g, int64_t samples, int64_t channels, double (*totals)[SUMS], Fetch fetch,
                         Body body) {
  using A = Accumulator<T>;
  Vector<A> sums[kShortTile][SUMS] = {};
  Doubles wide[kShortTile][SUMS] = {};
  const int64_t together = g.spatial < 16 * kLanes<A> ? 16 * kLanes<A> / g.spatial : 1;  // samples
  int64_t room = together;
  for (int64_t sample = 0; sample < samples; ++sample) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t plane = sample * g.channels + channel;
      Vector<A> s[SUMS];
      repeat<SUMS>([&](auto i) __attribute__((always_inline)) { s[i] = sums[channel][i]; });
      for_elements<T>(
          g.spatial, [&](int64_t c, auto run) __attribute__((always_inline)) { fetch(plane, c, run); },
          [&](int64_t c, auto lanes) __attribute__((always_inline)) { body(plane, c, channel, lanes, s); });
      repeat<SUMS>([&](auto i) __attribute__((always_inline)) { sums[channel][i] = s[i]; });
    }
    if (--room > 0 && sample + 1 < samples) continue;
    room = together;
    for (int64_t channel = 0; channel < channels; ++channel)
      repeat<SUMS>([&](auto i) __attribute__((always_inline)) {
        if constexpr (std::is_same_v<A, float>)
          wide[channel][i] += low(sums[channel][i]) + high(sums[channel][i]);
        else
          wide[channel][i] += sums[channel][i];
        sums[channel][i] = Vector<A>{};
      });
  }
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int i = 0; i < SUMS; ++i) totals[channel][i] = total(wide[channel][i]);
}

// An output of a tile and one sample: a run of memory whose planes need not be whole lines. Where it goes past the
// caches, it is made here, at the same place of a line, and stored when all of it is there. What is not wanted stays
// null.
template <class T>
class TileOutput {
 public:
  TFN_INLINE TileOutput(T* run, bool past)
      : run_(run),
        into_line_(int64_t(reinterpret_cast<uintptr_t>(run) % 64)),
        made_(past && run ? values_ + into_line_ / int64_t(sizeof(T)) : run) {}
  TFN_INLINE T* at(int64_t element) const { return made_ ? made_ + element : nullptr; }
  TFN_INLINE void finish([[maybe_unused]] int64_t elements) const {
#if TFN_VECTOR_BYTES == 64
    if (made_ == run_) return;
    char* const to = reinterpret_cast<char*>(run_);
    const char* const from = reinterpret_cast<const char*>(made_);
    const int64_t bytes = elements * int64_t(sizeof(T)), to_line = into_line_ ? 64 - into_line_ : 0;
    const int64_t head = to_line < bytes ? to_line : bytes;
    std::memcpy(to, from, size_t(head));
    int64_t done = head;
    for (; done + 64 <= bytes; done += 64) store_bits(to + done, load_bits<Words>(from + done, Whole{}), Past{});
    std::memcpy(to + done, from + done, size_t(bytes - done));
#endif
  }

 private:
  T* const run_;
  const int64_t into_line_;
  T* const made_;
  alignas(64) T values_[kShortElements + 64 / sizeof(T)];
};

template <class T>
struct ShortForward {
  using A = Accumulator<T>;
  using Call = PlaneForwardCall;

  // Of the samples of one block.
  static __attribute__((noinline)) void tile_moments(const Call& call, const T* x, int64_t samples, int64_t channels,
                                                     Moments* moments) {
    const PlaneGeometry& g = call.geometry;
    const int64_t spatial = g.spatial, asked = (kAsked + spatial - 1) / spatial,
                  shift_samples = asked < samples ? asked : samples;
    const int64_t ahead = g.channels * g.spatial * int64_t(sizeof(T));
    double sum[kShortTile][1], sums[kShortTile][2];
    A shift[kShortTile];
    const auto nothing = [](int64_t, int64_t, auto) {};
    const auto fetch = [=](int64_t plane, int64_t c, auto run)
                           __attribute__((always_inline)) { fetch_run_to_read<run>(x + plane * spatial + c, ahead); };
    sum_tile<T>(g, shift_samples, channels, sum, nothing,
                [=](int64_t plane, int64_t c, int64_t, auto lanes, Vector<A>* s)
                    __attribute__((always_inline)) { s[0] += load(x + plane * spatial + c, lanes); });
    for (int64_t c = 0; c < channels; ++c) shift[c] = A(sum[c][0] / double(shift_samples * g.spatial));
    sum_tile<T>(g, samples, channels, sums, fetch,
                [&, x, spatial](int64_t plane, int64_t c, int64_t channel, auto lanes, Vector<A>* s)
                    __attribute__((always_inline)) {
                      const Vector<A> d = keep(load(x + plane * spatial + c, lanes) - shift[channel], lanes);
                      s[0] += d;
                      s[1] += d * d;
                    });
    const double count = double(samples * g.spatial);
    for (int64_t c = 0; c < channels; ++c) {
      const double correction = sums[c][0] / count;
      moments[c] = merge_two(moments[c], {count, double(shift[c]) + correction, sums[c][1] - sums[c][0] * correction});
    }
  }

  // The samples [begin, end), last first. Where y goes past the caches, the tile is at most a short_tile.
  template <Follow FOLLOW>
  static __attribute__((noinline)) void apply(const Call& call, int64_t begin, int64_t end, Columns tile) {
    const PlaneNormForward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const bool past = FirstForward<T>::goes_past(call);
    A scale[kShortTile];
    for (int64_t c = tile.begin; c < tile.end; ++c)
      scale[c - tile.begin] = plain(static_cast<const A*>(call.rstd)[c] * static_cast<const A*>(call.weight)[c]);
    for (int64_t sample = end - 1; sample >= begin; --sample) {
      const int64_t run = (sample * g.channels + tile.begin) * g.spatial;
      TileOutput<T> output(static_cast<T*>(a.y) + run, past);
      for (int64_t channel = tile.begin; channel < tile.end; ++channel) {
        const int64_t plane = (channel - tile.begin) * g.spatial;
        const T* const x = static_cast<const T*>(a.x) + run + plane;
        const T* const residual = a.residual ? static_cast<const T*>(a.residual) + run + plane : nullptr;
        T* const y = output.at(plane);
        const Vector<A> mean = splat(plain(static_cast<const A*>(call.mean)[channel]));
        const Vector<A> of_d = splat(scale[channel - tile.begin]);
        const Vector<A> bias = splat(plain(static_cast<const A*>(call.bias)[channel]));
        uint8_t* const signs = signs_of<T>(a.signs, sample * g.channels + channel, g.spatial, 0);
        const auto fetch = [=](int64_t c, auto elements) __attribute__((always_inline)) {
          if (residual) fetch_run_to_read<elements>(residual + c, kWriteAhead);  // within the tile's run, as y
          if (!past) fetch_run_to_write<elements>(y + c, kWriteAhead);
        };
        write_elements<T>(g.spatial, {y}, signs, /*past=*/false, fetch,
                          [=, &a](int64_t c, auto lanes) __attribute__((always_inline)) -> Values<A, 1> {
                            const Vector<A> v = affine(Vector<A>(load(x + c, lanes) - mean), of_d, bias);
                            return {{followed<FOLLOW, A>(v, residual, a.activation, c, lanes)}};
                          });
      }
      output.finish(tile.width() * g.spatial);
    }
    finish_stores(past);
  }

  static auto apply_of(const Call& call) {
    return by_follow(*call.arguments, [](auto follow) { return apply<decltype(follow)::value>; });
  }

  static void sets(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const auto apply_to = apply_of(call);
    const int64_t samples = cut_of(g.slab_samples, g.spatial).planes;
    for (int64_t first = begin; first < end; first += short_tile(g)) {
      const Columns tile{first, first + short_tile(g) < end ? first + short_tile(g) : end};
      Moments moments[kShortTile] = {};
      for (int64_t sample = 0; sample < g.slab_samples; sample += samples) {
        const int64_t left = g.slab_samples - sample;
        tile_moments(call, static_cast<const T*>(call.arguments->x) + (sample * g.channels + first) * g.spatial,
                     left < samples ? left : samples, tile.end - first, moments);
      }
      for (int64_t c = first; c < tile.end; ++c) finish_set<A>(call, c, moments[c - first]);
      apply_to(call, 0, g.slab_samples, tile);
    }
  }

  // Planes, sample by sample; not where y goes past the caches.
  static void pieces(const Call& call, int64_t begin, int64_t end) {
    const int64_t channels = call.geometry.channels;
    const auto apply_to = apply_of(call);
    for (int64_t first = begin, next; first < end; first = next) {
      const int64_t sample = first / channels, channel = first % channels;
      const int64_t left = end - first < channels - channel ? end - first : channels - channel;
      next = first + (left < kShortTile ? left : kShortTile);
      apply_to(call, sample, sample + 1, {channel, channel + (next - first)});
    }
  }
};

template <class T>
struct ShortBackward {
  using A = Accumulator<T>;
  using Call = PlaneBackwardCall;

  struct Tile {
    Columns channels;
    A mean[kShortTile], scale[kShortTile], bias[kShortTile];
  };

  template <Follow FOLLOW>
  static __attribute__((noinline)) void sums(const Call& call, const Tile& tile, double (*totals)[2]) {
    const PlaneNormBackward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const int64_t offset = tile.channels.begin * g.spatial;
    const T *const grad_y = static_cast<const T*>(a.grad_y) + offset, *const x = static_cast<const T*>(a.x) + offset;
    const T* const residual = a.residual ? static_cast<const T*>(a.residual) + offset : nullptr;
    const int64_t spatial = g.spatial, run = sign_bytes(spatial, dtype_of<T>);
    const uint8_t* const signs = signs_of<T>(a.signs, tile.channels.begin, spatial, 0);
    const int64_t ahead = g.channels * spatial * int64_t(sizeof(T));
    const auto fetch = [=](int64_t plane, int64_t c, auto elements) __attribute__((always_inline)) {
      fetch_run_to_read<elements>(grad_y + plane * spatial + c, ahead);
      fetch_run_to_read<elements>(x + plane * spatial + c, ahead);
    };
    sum_tile<T>(g, g.slab_samples, tile.channels.end - tile.channels.begin, totals, fetch,
                [&, grad_y, x, residual, signs, spatial, run](int64_t plane, int64_t c, int64_t channel, auto lanes,
                                                              Vector<A>* s) __attribute__((always_inline)) {
                  const int64_t i = plane * spatial;
                  const Vector<A> d = load(x + i + c, lanes) - tile.mean[channel];
                  const Vector<A> g =
                      gradient<FOLLOW, A>(load(grad_y + i + c, lanes), residual ? residual + i : nullptr,
                                          signs ? signs + plane * run : nullptr, d, splat(tile.scale[channel]),
                                          splat(tile.bias[channel]), a.activation, c, lanes);
                  s[0] += g;
                  s[1] += g * d;
                });
  }

  template <Follow FOLLOW>
  static __attribute__((noinline)) void apply(const Call& call, const Tile& tile) {
    const PlaneNormBackward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const bool past = FirstBackward<T>::goes_past(call);
    for (int64_t sample = g.slab_samples - 1; sample >= 0; --sample) {
      const int64_t run = (sample * g.channels + tile.channels.begin) * g.spatial;
      TileOutput<T> grad_x_of_tile(a.grad_x ? static_cast<T*>(a.grad_x) + run : nullptr, past);
      TileOutput<T> grad_residual_of_tile(a.grad_residual ? static_cast<T*>(a.grad_residual) + run : nullptr, past);
      for (int64_t channel = tile.channels.begin; channel < tile.channels.end; ++channel) {
        const int64_t i = channel - tile.channels.begin, offset = run + i * g.spatial;
        const T* const grad_y = static_cast<const T*>(a.grad_y) + offset;
        const T* const x = static_cast<const T*>(a.x) + offset;
        const T* const residual = a.residual ? static_cast<const T*>(a.residual) + offset : nullptr;
        T* const grad_x = grad_x_of_tile.at(i * g.spatial);
        T* const grad_residual = grad_residual_of_tile.at(i * g.spatial);
        const uint8_t* const signs = signs_of<T>(a.signs, sample * g.channels + channel, g.spatial, 0);
        const A* const coefficients = static_cast<const A*>(call.coefficients) + 2 * channel;
        const Vector<A> mean = splat(tile.mean[i]), scale = splat(tile.scale[i]), bias = splat(tile.bias[i]);
        const Vector<A> of_d = splat(plain(coefficients[0])), constant = splat(plain(coefficients[1]));
        const auto fetch = [=](int64_t c, auto elements) __attribute__((always_inline)) {
          if (past) return;
          if (grad_x) fetch_run_to_write<elements>(grad_x + c, kWriteAhead);
          if (grad_residual) fetch_run_to_write<elements>(grad_residual + c, kWriteAhead);
        };
        const auto gradients = [=, &a](int64_t c, auto lanes) __attribute__((always_inline)) -> Values<A, 2> {
          const Vector<A> d = load(x + c, lanes) - mean;
          const Vector<A> g =
              gradient<FOLLOW, A>(load(grad_y + c, lanes), residual, signs, d, scale, bias, a.activation, c, lanes);
          return {{g, plane_gradient(g, d, scale, of_d, constant)}};
        };
        write_elements<T>(g.spatial, {grad_residual, grad_x}, nullptr, /*past=*/false, fetch, gradients);
      }
      grad_x_of_tile.finish(tile.channels.width() * g.spatial);
      grad_residual_of_tile.finish(tile.channels.width() * g.spatial);
    }
    finish_stores(past);
  }

  struct Kernels {
    void (*sums)(const Call&, const Tile&, double (*totals)[2]);
    void (*apply)(const Call&, const Tile&);
  };

  static void sets(const Call& call, int64_t begin, int64_t end, void*) {
    const PlaneNormBackward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const double count = call.counts[0];
    const Kernels kernels = by_follow(
        a, [](auto follow) -> Kernels { return {sums<decltype(follow)::value>, apply<decltype(follow)::value>}; });
    for (int64_t first = begin; first < end; first += short_tile(g)) {
      Tile tile{{first, first + short_tile(g) < end ? first + short_tile(g) : end}, {}, {}, {}};
      double totals[kShortTile][2] = {};
      for (int64_t c = first; c < tile.channels.end; ++c) {
        tile.mean[c - first] = plain(static_cast<const A*>(a.mean)[c]);
        tile.scale[c - first] = plain(static_cast<const A*>(a.rstd)[c] * static_cast<const A*>(call.weight)[c]);
        tile.bias[c - first] = plain(static_cast<const A*>(call.bias)[c]);
      }
      if (call.sums) kernels.sums(call, tile, totals);
      for (int64_t c = first; c < tile.channels.end; ++c) {
        GradientSums of_set{};
        FirstBackward<T>::finish_channel(call, 0, c, {totals[c - first][0], totals[c - first][1]}, of_set);
        finish_set<A>(call, c, of_set, count);
      }
      if (call.apply) kernels.apply(call, tile);
    }
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
