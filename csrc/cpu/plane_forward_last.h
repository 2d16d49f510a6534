// Forward of the plane norms, channels last: interface/plane_norm.h, the cuts in plane_kernels.h.
//
// A slab is a matrix of rows with one column per channel; vectors run over columns, a masked-out row is skipped.
//
//      shift    mean of the first rows of a row block             per column
//      sums     d = x - shift, sums of d and d * d                 over kRowBlock rows, kStrip rows in A, then double
//      merged   block to block, chunk to chunk, channel to channel of a set
//
// The shift is a mean of kShiftRows rows of the block itself, so the squares that cancel in  sum(d * d) - sum(d)^2 / n
// are at most some kRowBlock / kShiftRows times what remains.
//
// Numbers of columns (shift, sums, mean, scale, ...) lie in the order in which vectors take the columns: of bfloat16,
// of each pair of vectors first those of the even columns, then those of the odd ones (kPaired). Only what a set is
// made from (finish_sets) and what load_parameters reads is in the order of channels.
//
// Memory: whole rows, always. Columns alone would make better use of a cache, but rows lie at powers of two from each
// other more often than not, and the columns of all rows then share a few of a cache's sets. What of a slab, or of a
// thread's chunks, was read last is found in cache for y.
#pragma once
#include "plane_loops.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

constexpr int64_t kShiftRows = 16;
// Rows summed in A: of 16 bits more, which have less to lose.
template <class T>
constexpr int64_t kStrip = sizeof(T) == 2 ? 64 : 32;
// Rows at a time (measured): more share what is loaded for the columns, fewer are read, and above all written, in a
// better order for memory. Of 16 bits, arithmetic takes longer than memory.
template <class T>
constexpr int kSummed = sizeof(T) == 2 ? 8 : 4;
constexpr int kGradientsSummed = 4;
template <class T>
constexpr int kApplied = sizeof(T) == 2 && TFN_VECTOR_BYTES == 64 ? 2 : 1;

// f(rows at once, begin, rows) over the counted rows of [begin, end): ROWS at once as long as that goes, else one.
template <int ROWS, class F>
TFN_INLINE void for_rows(const uint8_t* mask, int64_t begin, int64_t end, F f) {
  for (int64_t row = begin; row < end;) {
    int64_t run = row;
    while (run < end && (!mask || mask[run])) run = mask ? run + 1 : end;
    const int64_t together = (run - row) / ROWS * ROWS;
    if (ROWS > 1 && together) f(std::integral_constant<int, ROWS>(), row, together);
    row += ROWS > 1 ? together : 0;
    if (row < run) f(std::integral_constant<int, 1>(), row, run - row);
    for (row = run; row < end && mask && !mask[row];) ++row;
  }
}
// f(column of the tile, channel, set) for the columns of a tile. (A division for each, or a loop that takes no vectors,
// would be a tenth of the time.)
template <class F>
TFN_INLINE void for_channels(const PlaneGeometry& g, int64_t slab, Columns columns, F f) {
  const int64_t width = columns.width(), first = columns.begin;
  if (g.per_set == 1) {
    for (int64_t c = 0; c < width; ++c) f(c, first + c, slab * g.groups + first + c);
    return;
  }
  int64_t group = columns.begin / g.per_set, next = (group + 1) * g.per_set;
  for (int64_t channel = columns.begin; channel < columns.end; ++group, next += g.per_set)
    for (; channel < next && channel < columns.end; ++channel)
      f(channel - columns.begin, channel, slab * g.groups + group);
}

TFN_INLINE int64_t count_rows(const uint8_t* mask, int64_t begin, int64_t end) {
  if (!mask) return end - begin;
  int64_t count = 0;
  for (int64_t row = begin; row < end; ++row) count += mask[row];
  return count;
}
template <class A>
TFN_INLINE int64_t whole_lanes(int64_t columns) {
  return (columns + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}
// The sums of a strip go over into double, and begin anew.
TFN_INLINE void add_wide(double* to, Floats v) {
  store(to, load(to, Whole{}) + low(v), Whole{});
  store(to + kLanes<double>, load(to + kLanes<double>, Whole{}) + high(v), Whole{});
}
TFN_INLINE void add_wide(double* to, Doubles v) { store(to, load(to, Whole{}) + v, Whole{}); }
template <class A>
TFN_INLINE void finish_strip(double* to, A* sums, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kLanes<A>) {
    add_wide(to + c, load(sums + c, Whole{}));
    store(sums + c, Vector<A>{}, Whole{});
  }
}

TFN_INLINE const uint8_t* mask_of(const uint8_t* mask, const PlaneGeometry& g, int64_t slab) {
  return mask ? mask + slab * g.rows() : nullptr;
}

template <class T>
struct LastForward {
  using A = Accumulator<T>;
  using Call = PlaneForwardCall;

  struct Tile {
    A shift[kTile], sums[kTile], squares[kTile];
    double wide_sums[kTile], wide_squares[kTile];
  };

  // Sums over `rows` rows, ROWS at a time. Half of the additions are written as those of a product: there are as many
  // units for these, and additions alone would be the longest part.
  template <int ROWS>
  static __attribute__((noinline)) void accumulate(const T* x, int64_t rows, int64_t stride, int64_t columns,
                                                   Tile& tile) {
    const int64_t ahead = rows_ahead<T>(kReadAhead, ROWS, columns) * stride * int64_t(sizeof(T));
    const Vector<A> one = rounded(splat(A(1)));
    for (; rows > 0; rows -= ROWS, x += ROWS * stride) {
      const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
        repeat<ROWS>([&](auto row)
                         __attribute__((always_inline)) { fetch_run_to_read<run>(x + row * stride + c, ahead); });
      };
      for_lanes<T>(columns, fetch, [&, x, stride](int64_t c, auto... lanes) __attribute__((always_inline)) {
        constexpr int N = sizeof...(lanes);
        const Values<A, N> shift = load_numbers<N>(tile.shift + c);
        Values<A, N> sums, squares;
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Values<A, N> v = load_each(x + row * stride + c, lanes...);
          repeat<N>([&](auto i) __attribute__((always_inline)) {
            const Vector<A> d = v.of[i] - shift.of[i];
            sums.of[i] = row == 0 ? d : sums.of[i] + (row % 2 ? d * one : d);
            squares.of[i] = row == 0 ? d * d : squares.of[i] + d * d;
          });
        });
        add_numbers(tile.sums + c, sums);
        add_numbers(tile.squares + c, squares);
      });
    }
  }
  // The same without a shift, of x alone.
  template <int ROWS>
  static __attribute__((noinline)) void accumulate(const T* x, int64_t rows, int64_t stride, int64_t columns,
                                                   A* numbers) {
    const auto nothing = [](int64_t, auto) {};
    for (; rows > 0; rows -= ROWS, x += ROWS * stride)
      for_lanes<T>(columns, nothing, [=](int64_t c, auto... lanes) __attribute__((always_inline)) {
        constexpr int N = sizeof...(lanes);
        Values<A, N> sums;
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Values<A, N> v = load_each(x + row * stride + c, lanes...);
          repeat<N>([&](auto i)
                        __attribute__((always_inline)) { sums.of[i] = row == 0 ? v.of[i] : sums.of[i] + v.of[i]; });
        });
        add_numbers(numbers + c, sums);
      });
  }

  // mean[0, width) and squares of the rows [begin, end) of x; returns how many of them count.
  static __attribute__((noinline)) double moments_of_rows(const T* x, int64_t stride, const uint8_t* mask,
                                                          int64_t begin, int64_t end, int64_t width,
                                                          double* __restrict mean, double* __restrict squares) {
    alignas(64) Tile tile;
    const int64_t lanes = whole_lanes<A>(width);
    for (int64_t c = 0; c < width; ++c) mean[c] = squares[c] = 0;
    double merged = 0;
    for (int64_t block = begin; block < end; block += kRowBlock) {
      const int64_t block_end = block + kRowBlock < end ? block + kRowBlock : end;
      const double count = double(count_rows(mask, block, block_end));
      if (count == 0) continue;
      int64_t first = block;
      while (mask && !mask[first]) ++first;
      const int64_t first_end = first + kShiftRows < block_end ? first + kShiftRows : block_end;
      for (int64_t c = 0; c < lanes; ++c) {
        tile.shift[c] = tile.sums[c] = tile.squares[c] = 0;
        tile.wide_sums[c] = tile.wide_squares[c] = 0;
      }
      for_rows<kSummed<T>>(mask, first, first_end,
                           [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
                             accumulate<decltype(at_once)::value>(x + row * stride, rows, stride, width, tile.shift);
                           });
      const A share = A(1) / A(count_rows(mask, first, first_end));
      for (int64_t c = 0; c < width; ++c) tile.shift[c] *= share;
      for (int64_t strip = block; strip < block_end; strip += kStrip<T>) {
        for_rows<kSummed<T>>(mask, strip, strip + kStrip<T> < block_end ? strip + kStrip<T> : block_end,
                             [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
                               accumulate<decltype(at_once)::value>(x + row * stride, rows, stride, width, tile);
                             });
        finish_strip(tile.wide_sums, tile.sums, width);
        finish_strip(tile.wide_squares, tile.squares, width);
      }
      const double to_mean = 1 / count, share_of_block = count / (merged + count);
      const double product = merged * share_of_block;
      for (int64_t c = 0; c < width; ++c) {
        const double correction = tile.wide_sums[c] * to_mean, block_mean = double(tile.shift[c]) + correction;
        const double distance = block_mean - mean[c];
        squares[c] += (tile.wide_squares[c] - tile.wide_sums[c] * correction) + distance * distance * product;
        mean[c] = merged == 0 ? block_mean : mean[c] + distance * share_of_block;
      }
      merged += count;
    }
    return merged;
  }

  static TFN_INLINE double chunk_moments(const Call& call, int64_t slab, int64_t chunk, Columns columns, double* mean,
                                         double* squares) {
    const PlaneGeometry& g = call.geometry;
    const T* const x = static_cast<const T*>(call.arguments->x) + slab * g.rows() * g.channels + columns.begin;
    const Rows rows = rows_of(g, chunk);
    return moments_of_rows(x, g.channels, mask_of(call.arguments->mask, g, slab), rows.begin, rows.end, columns.width(),
                           mean, squares);
  }

  // The next chunk of a slab into those before it; returns their number of rows.
  static TFN_INLINE double merge_chunk(double merged, double* __restrict mean, double* __restrict squares, double count,
                                       const double* __restrict next_mean, const double* __restrict next_squares,
                                       int64_t width) {
    if (count == 0) return merged;
    const double share = count / (merged + count), product = merged * share;
    for (int64_t c = 0; c < width; ++c) {
      const double distance = next_mean[c] - mean[c];
      squares[c] += next_squares[c] + distance * distance * product;
      mean[c] = merged == 0 ? next_mean[c] : mean[c] + distance * share;
    }
    return merged + count;
  }

  // The sets of these columns of a slab, from the moments of each column.
  static void finish_sets(const Call& call, int64_t slab, Columns columns, double count, const double* mean,
                          const double* squares) {
    const PlaneGeometry& g = call.geometry;
    const int64_t width = columns.width();
    for (int64_t c = 0; c < width;) {
      const int64_t group = (columns.begin + c) / g.per_set, end = c + g.per_set;
      Moments moments{};
      for (; c < end; ++c) {
        const int64_t place = place_of_column<T>(c, width);
        moments = merge_two(moments, {count, mean[place], squares[place]});
      }
      finish_set<A>(call, slab * g.groups + group, moments);
    }
  }

  struct Parameters {
    alignas(64) A mean[kTile], scale[kTile], bias[kTile];
  };

  static __attribute__((noinline)) void load_parameters(const Call& call, int64_t slab, Columns columns,
                                                        Parameters& p) {
    for_channels(
        call.geometry, slab, columns, [&](int64_t c, int64_t channel, int64_t set) __attribute__((always_inline)) {
          p.mean[c] = plain(static_cast<const A*>(call.mean)[set]);
          p.scale[c] = plain(static_cast<const A*>(call.rstd)[set] * static_cast<const A*>(call.weight)[channel]);
          p.bias[c] = plain(static_cast<const A*>(call.bias)[channel]);
        });
    for (A* numbers : {p.mean, p.scale, p.bias}) put_in_order<T>(numbers, columns.width());
  }

  // Where a tile of a slab begins.
  struct Data {
    const T *x, *residual;
    T* y;
    uint8_t* signs;
    int64_t stride, signs_stride;
    bool past;

    TFN_INLINE Data at_row(int64_t row) const {
      return {x + row * stride,
              residual ? residual + row * stride : nullptr,
              y + row * stride,
              signs ? signs + row * signs_stride : nullptr,
              stride,
              signs_stride,
              past};
    }
  };
  static TFN_INLINE Data data_of(const Call& call, int64_t slab, Columns columns) {
    const PlaneNormForward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const int64_t offset = slab * g.rows() * g.channels + columns.begin;
    return {static_cast<const T*>(a.x) + offset,
            a.residual ? static_cast<const T*>(a.residual) + offset : nullptr,
            static_cast<T*>(a.y) + offset,
            signs_of<T>(a.signs, slab * g.rows(), g.channels, columns.begin),
            g.channels,
            sign_bytes(g.channels, dtype_of<T>),
            kStoresPast && call.past};
  }

  template <Follow FOLLOW, int ROWS>
  static __attribute__((noinline)) void apply(const Data& data, int64_t rows, int64_t columns, const Parameters& p,
                                              Activation activation) {
    const int64_t read_ahead = rows_ahead<T>(kReadAhead, ROWS, columns) * data.stride * int64_t(sizeof(T));
    const int64_t write_ahead = rows_ahead<T>(kWriteAhead, ROWS, columns) * data.stride * int64_t(sizeof(T));
    for (int64_t begin = 0; begin < rows; begin += ROWS) {
      const Data first = data.at_row(begin);
      const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          fetch_run_to_read<run>(at.x + c, read_ahead);
          if (at.residual) fetch_run_to_read<run>(at.residual + c, read_ahead);
          if (!at.past) fetch_run_to_write<run>(at.y + c, write_ahead);
        });
      };
      for_lanes<T>(columns, fetch, [=, &p](int64_t c, auto... lanes) __attribute__((always_inline)) {
        constexpr int N = sizeof...(lanes);
        const Values<A, N> mean = load_numbers<N>(p.mean + c), scale = load_numbers<N>(p.scale + c);
        const Values<A, N> bias = load_numbers<N>(p.bias + c);
        Values<A, N> v[ROWS];
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          v[row] = load_each(at.x + c, lanes...);
          each_lane(
              [&](auto i, auto lane) __attribute__((always_inline)) {
                const Vector<A> normalized = affine(Vector<A>(v[row].of[i] - mean.of[i]), scale.of[i], bias.of[i]);
                v[row].of[i] = followed<FOLLOW, A>(normalized, at.residual, activation, c, lane);
              },
              lanes...);
        });
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          store_each(at.past, at.y + c, v[row], lanes...);
          if constexpr (FOLLOW != Follow::Nothing)
            if (at.signs) store_signs_of_each<T>(at.signs, c, v[row], lanes...);
        });
      });
    }
  }

  // Rows [begin, end), at most kTile columns.
  template <Follow FOLLOW>
  static void apply_rows(const Data& data, const uint8_t* mask, int64_t begin, int64_t end, int64_t width,
                         const Parameters& p, Activation activation) {
    for_rows<FOLLOW == Follow::Anything ? 1 : kApplied<T>>(
        mask, begin, end, [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
          apply<FOLLOW, decltype(at_once)::value>(data.at_row(row), rows, width, p, activation);
        });
    for (int64_t row = begin; mask && row < end; ++row)
      if (!mask[row]) std::memset(data.y + row * data.stride, 0, size_t(width) * sizeof(T));
  }

  static auto apply_of(const Call& call) {
    return by_follow(*call.arguments, [](auto follow) { return apply_rows<decltype(follow)::value>; });
  }

  // Of all columns: moments, and the moments of one chunk.
  static int64_t scratch(const PlaneGeometry& g) { return 4 * g.channels * int64_t(sizeof(double)); }

  static void slabs(const Call& call, int64_t begin, int64_t end, void* scratch) {
    const PlaneGeometry& g = call.geometry;
    const auto apply_to = apply_of(call);
    double* const mean = static_cast<double*>(scratch);
    double *const squares = mean + g.channels, *const next = squares + g.channels;
    for (int64_t slab = begin; slab < end; ++slab) {
      double count = 0;
      for (int64_t c = 0; c < 2 * g.channels; ++c) mean[c] = 0;
      for (int64_t chunk = 0; chunk < chunk_count(g); ++chunk) {
        double rows = 0;
        for (int64_t tile = 0; tile < tile_count(g); ++tile) {
          const Columns columns = tile_of(g, tile);
          rows = chunk_moments(call, slab, chunk, columns, next + columns.begin, next + g.channels + columns.begin);
        }
        count = merge_chunk(count, mean, squares, rows, next, next + g.channels, g.channels);
      }
      finish_sets(call, slab, {0, g.channels}, count, mean, squares);
      for (int64_t chunk = chunk_count(g) - 1; chunk >= 0; --chunk)
        for (int64_t tile = 0; tile < tile_count(g); ++tile) apply_chunk(call, apply_to, slab, chunk, tile_of(g, tile));
    }
  }

  template <class APPLY>
  static TFN_INLINE void apply_chunk(const Call& call, APPLY apply_to, int64_t slab, int64_t chunk, Columns columns) {
    const Rows rows = rows_of(call.geometry, chunk);
    Parameters p;
    load_parameters(call, slab, columns, p);
    apply_to(data_of(call, slab, columns), mask_of(call.arguments->mask, call.geometry, slab), rows.begin, rows.end,
             columns.width(), p, call.arguments->activation);
    finish_stores(kStoresPast && call.past);
  }

  static void moments(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const int64_t tiles = tile_count(g);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t chunk = i / tiles;
      const Columns columns = tile_of(g, i % tiles);
      double* const mean = call.of_chunks + chunk * 2 * g.channels + columns.begin;
      const double count =
          chunk_moments(call, chunk / chunk_count(g), chunk % chunk_count(g), columns, mean, mean + g.channels);
      if (columns.begin == 0) call.counts[chunk] = count;
    }
  }

  static void finish(const Call& call, int64_t slab, Columns columns, void* scratch) {
    const PlaneGeometry& g = call.geometry;
    const int64_t width = columns.width();
    double* const mean = static_cast<double*>(scratch);
    double* const squares = mean + width;
    double count = 0;
    for (int64_t c = 0; c < 2 * width; ++c) mean[c] = 0;
    for (int64_t chunk = slab * chunk_count(g); chunk < (slab + 1) * chunk_count(g); ++chunk) {
      const double* const next = call.of_chunks + chunk * 2 * g.channels + columns.begin;
      count = merge_chunk(count, mean, squares, call.counts[chunk], next, next + g.channels, width);
    }
    finish_sets(call, slab, columns, count, mean, squares);
  }

  // Last first: what was read last may still be in cache.
  static void tiles(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const auto apply_to = apply_of(call);
    for (int64_t i = end - 1; i >= begin; --i) {
      const int64_t chunk = i / tile_count(g);
      apply_chunk(call, apply_to, chunk / chunk_count(g), chunk % chunk_count(g), tile_of(g, i % tile_count(g)));
    }
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
