// Backward of the plane norms, channels last: interface/plane_norm.h, the cuts in plane_kernels.h; the steps are those
// of plane_backward_first.h, with vectors over columns, as in plane_forward_last.h.
#pragma once
#include "plane_forward_last.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class T>
struct LastBackward {
  using A = Accumulator<T>;
  using Call = PlaneBackwardCall;

  struct Parameters {
    alignas(64) A mean[kTile], scale[kTile], bias[kTile], of_d[kTile], constant[kTile], sums[kTile], centered[kTile];
  };

  // Where a tile of a slab begins.
  struct Data {
    const T *grad_y, *x, *residual;
    const uint8_t* signs;
    T *grad_x, *grad_residual;
    int64_t stride, signs_stride;
    bool past;

    TFN_INLINE Data at_row(int64_t row) const {
      return {grad_y + row * stride,
              x + row * stride,
              residual ? residual + row * stride : nullptr,
              signs ? signs + row * signs_stride : nullptr,
              grad_x ? grad_x + row * stride : nullptr,
              grad_residual ? grad_residual + row * stride : nullptr,
              stride,
              signs_stride,
              past};
    }
  };
  static TFN_INLINE Data data_of(const Call& call, int64_t slab, Columns columns) {
    const PlaneNormBackward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    const int64_t offset = slab * g.rows() * g.channels + columns.begin;
    return {static_cast<const T*>(a.grad_y) + offset,
            static_cast<const T*>(a.x) + offset,
            a.residual ? static_cast<const T*>(a.residual) + offset : nullptr,
            signs_of<T>(a.signs, slab * g.rows(), g.channels, columns.begin),
            a.grad_x ? static_cast<T*>(a.grad_x) + offset : nullptr,
            a.grad_residual ? static_cast<T*>(a.grad_residual) + offset : nullptr,
            g.channels,
            sign_bytes(g.channels, dtype_of<T>),
            kStoresPast && call.past};
  }

  static __attribute__((noinline)) void load_parameters(const Call& call, int64_t slab, Columns columns,
                                                        Parameters& p) {
    const PlaneNormBackward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    for_channels(g, slab, columns, [&](int64_t c, int64_t channel, int64_t set) __attribute__((always_inline)) {
      p.mean[c] = plain(static_cast<const A*>(a.mean)[set]);
      p.scale[c] = plain(static_cast<const A*>(a.rstd)[set] * static_cast<const A*>(call.weight)[channel]);
      p.bias[c] = plain(static_cast<const A*>(call.bias)[channel]);
      p.of_d[c] = plain(static_cast<const A*>(call.coefficients)[2 * set]);
      p.constant[c] = plain(static_cast<const A*>(call.coefficients)[2 * set + 1]);
    });
    for (A* numbers : {p.mean, p.scale, p.bias, p.of_d, p.constant}) put_in_order<T>(numbers, columns.width());
  }

  template <Follow FOLLOW, int ROWS>
  static __attribute__((noinline)) void accumulate(const Data& data, int64_t rows, int64_t columns, Parameters& p,
                                                   Activation activation) {
    const int64_t ahead = rows_ahead<T>(kReadAhead, ROWS, columns) * data.stride * int64_t(sizeof(T));
    const Vector<A> one = rounded(splat(A(1)));
    for (int64_t begin = 0; begin < rows; begin += ROWS) {
      const Data first = data.at_row(begin);
      const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          fetch_run_to_read<run>(at.x + c, ahead);
          fetch_run_to_read<run>(at.grad_y + c, ahead);
        });
      };
      for_lanes<T>(columns, fetch, [=, &p](int64_t c, auto... lanes) __attribute__((always_inline)) {
        constexpr int N = sizeof...(lanes);
        const Values<A, N> mean = load_numbers<N>(p.mean + c), scale = load_numbers<N>(p.scale + c);
        const Values<A, N> bias = load_numbers<N>(p.bias + c);
        Values<A, N> sums, centered;
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          const Values<A, N> x = load_each(at.x + c, lanes...), grad_y = load_each(at.grad_y + c, lanes...);
          each_lane(
              [&](auto i, auto lane) __attribute__((always_inline)) {
                const Vector<A> d = x.of[i] - mean.of[i];
                const Vector<A> g = gradient<FOLLOW, A>(grad_y.of[i], at.residual, at.signs, d, scale.of[i], bias.of[i],
                                                        activation, c, lane);
                sums.of[i] = row == 0 ? g : sums.of[i] + (row % 2 ? g * one : g);
                centered.of[i] = row == 0 ? g * d : centered.of[i] + g * d;
              },
              lanes...);
        });
        add_numbers(p.sums + c, sums);
        add_numbers(p.centered + c, centered);
      });
    }
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
          fetch_run_to_read<run>(at.grad_y + c, read_ahead);
          if (at.grad_x && !at.past) fetch_run_to_write<run>(at.grad_x + c, write_ahead);
          if (at.grad_residual && !at.past) fetch_run_to_write<run>(at.grad_residual + c, write_ahead);
        });
      };
      for_lanes<T>(columns, fetch, [=, &p](int64_t c, auto... lanes) __attribute__((always_inline)) {
        constexpr int N = sizeof...(lanes);
        const Values<A, N> mean = load_numbers<N>(p.mean + c), scale = load_numbers<N>(p.scale + c);
        const Values<A, N> bias = load_numbers<N>(p.bias + c);
        const Values<A, N> of_d = load_numbers<N>(p.of_d + c), constant = load_numbers<N>(p.constant + c);
        Values<A, N> g[ROWS], grad_x[ROWS];
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          const Values<A, N> x = load_each(at.x + c, lanes...), grad_y = load_each(at.grad_y + c, lanes...);
          each_lane(
              [&](auto i, auto lane) __attribute__((always_inline)) {
                const Vector<A> d = x.of[i] - mean.of[i];
                g[row].of[i] = gradient<FOLLOW, A>(grad_y.of[i], at.residual, at.signs, d, scale.of[i], bias.of[i],
                                                   activation, c, lane);
                grad_x[row].of[i] = plane_gradient(g[row].of[i], d, scale.of[i], of_d.of[i], constant.of[i]);
              },
              lanes...);
        });
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const Data at = first.at_row(row);
          if (at.grad_residual) store_each(at.past, at.grad_residual + c, g[row], lanes...);
          if (at.grad_x) store_each(at.past, at.grad_x + c, grad_x[row], lanes...);
        });
      });
    }
  }

  template <Follow FOLLOW>
  static void sum_rows(const Call& call, const Data& data, const uint8_t* mask, int64_t begin, int64_t end,
                       int64_t width, Parameters& p) {
    for_rows<FOLLOW == Follow::Anything ? 1 : kGradientsSummed>(
        mask, begin, end, [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
          accumulate<FOLLOW, decltype(at_once)::value>(data.at_row(row), rows, width, p, call.arguments->activation);
        });
  }

  template <Follow FOLLOW>
  static void apply_rows(const Call& call, const Data& data, const uint8_t* mask, int64_t begin, int64_t end,
                         int64_t width, const Parameters& p) {
    for_rows<FOLLOW == Follow::Anything ? 1 : kApplied<T>>(
        mask, begin, end, [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
          apply<FOLLOW, decltype(at_once)::value>(data.at_row(row), rows, width, p, call.arguments->activation);
        });
    finish_stores(data.past);
    for (int64_t row = begin; mask && row < end; ++row) {
      if (mask[row]) continue;
      const Data at = data.at_row(row);
      if (at.grad_x) std::memset(at.grad_x, 0, size_t(width) * sizeof(T));
      if (at.grad_residual) std::memset(at.grad_residual, 0, size_t(width) * sizeof(T));
    }
  }

  struct Kernels {
    void (*sums)(const Call&, const Data&, const uint8_t* mask, int64_t begin, int64_t end, int64_t width, Parameters&);
    void (*apply)(const Call&, const Data&, const uint8_t* mask, int64_t begin, int64_t end, int64_t width,
                  const Parameters&);
  };
  static Kernels kernels_of(const Call& call) {
    return by_follow(*call.arguments, [](auto follow) -> Kernels {
      return {sum_rows<decltype(follow)::value>, apply_rows<decltype(follow)::value>};
    });
  }

  // centered[0, width) and sums, of a tile of some rows, are written or added to. With constant statistics grad_x is
  // written as well. p: as load_parameters leaves them.
  static __attribute__((noinline)) void sums_of_rows(const Call& call, const Kernels& kernels, const Data& data,
                                                     const uint8_t* mask, Rows rows, int64_t width, Parameters& p,
                                                     bool add, double* __restrict centered, double* __restrict sums) {
    const bool constant = !call.arguments->batch_statistics;
    alignas(64) double of_rows[2][kTile];
    for (int64_t c = 0; c < whole_lanes<A>(width); ++c)
      p.sums[c] = p.centered[c] = A(of_rows[0][c] = of_rows[1][c] = 0);
    for (int64_t strip = rows.begin; strip < rows.end; strip += kStrip<T>) {
      const int64_t strip_end = strip + kStrip<T> < rows.end ? strip + kStrip<T> : rows.end;
      if (call.sums) {
        kernels.sums(call, data, mask, strip, strip_end, width, p);
        finish_strip(of_rows[0], p.centered, width);
        finish_strip(of_rows[1], p.sums, width);
      }
      if (constant && call.apply) kernels.apply(call, data, mask, strip, strip_end, width, p);
    }
    for (int64_t c = 0; c < width; ++c) {
      centered[c] = add ? centered[c] + of_rows[0][c] : of_rows[0][c];
      sums[c] = add ? sums[c] + of_rows[1][c] : of_rows[1][c];
    }
  }

  static void chunk_sums(const Call& call, const Kernels& kernels, int64_t slab, int64_t chunk, Columns columns,
                         bool add, double* centered, double* sums) {
    const PlaneGeometry& g = call.geometry;
    Parameters p;
    load_parameters(call, slab, columns, p);
    sums_of_rows(call, kernels, data_of(call, slab, columns), mask_of(call.arguments->mask, g, slab), rows_of(g, chunk),
                 columns.width(), p, add, centered, sums);
  }

  // The sets of these columns of a slab, from the sums of each column.
  static void finish_sets(const Call& call, int64_t slab, Columns columns, const double* centered, const double* sums) {
    const PlaneGeometry& g = call.geometry;
    const bool first = slab % slabs_per_part(g) == 0;
    double* const of_part = call.of_parts + slab / slabs_per_part(g) * 2 * g.channels;
    const int64_t width = columns.width();
    for (int64_t c = 0; c < width;) {
      const int64_t group = (columns.begin + c) / g.per_set, end = c + g.per_set, set = slab * g.groups + group;
      const double rstd = double(static_cast<const A*>(call.arguments->rstd)[set]);
      GradientSums of_set{};
      for (; c < end; ++c) {
        const int64_t channel = columns.begin + c, place = place_of_column<T>(c, width);
        const double weight = double(static_cast<const A*>(call.weight)[channel]), of_weight = centered[place] * rstd;
        of_part[channel] = first ? of_weight : of_part[channel] + of_weight;
        of_part[g.channels + channel] = first ? sums[place] : of_part[g.channels + channel] + sums[place];
        of_set = {of_set.g + weight * sums[place], of_set.g_centered + weight * centered[place]};
      }
      finish_set<A>(call, set, of_set, call.counts[slab] * double(g.per_set));
    }
  }

  static void apply_chunk(const Call& call, const Kernels& kernels, int64_t slab, int64_t chunk, Columns columns) {
    const PlaneGeometry& g = call.geometry;
    Parameters p;
    load_parameters(call, slab, columns, p);
    const Rows rows = rows_of(g, chunk);
    kernels.apply(call, data_of(call, slab, columns), mask_of(call.arguments->mask, g, slab), rows.begin, rows.end,
                  columns.width(), p);
  }

  static int64_t scratch(const PlaneGeometry& g) { return 2 * g.channels * int64_t(sizeof(double)); }

  static void slab(const Call& call, const Kernels& kernels, int64_t slab, double* centered) {
    const PlaneGeometry& g = call.geometry;
    double* const sums = centered + g.channels;
    for (int64_t c = 0; c < 2 * g.channels; ++c) centered[c] = 0;
    for (int64_t chunk = 0; chunk < chunk_count(g); ++chunk)
      for (int64_t tile = 0; tile < tile_count(g); ++tile) {
        const Columns columns = tile_of(g, tile);
        chunk_sums(call, kernels, slab, chunk, columns, /*add=*/true, centered + columns.begin, sums + columns.begin);
      }
    finish_sets(call, slab, {0, g.channels}, centered, sums);
    for (int64_t chunk = chunk_count(g) - 1; call.apply && chunk >= 0; --chunk)
      for (int64_t tile = 0; tile < tile_count(g); ++tile) apply_chunk(call, kernels, slab, chunk, tile_of(g, tile));
  }

  static void parts(const Call& call, int64_t begin, int64_t end, void* scratch) {
    const PlaneGeometry& g = call.geometry;
    const Kernels kernels = kernels_of(call);
    for (int64_t i = begin * slabs_per_part(g); i < end * slabs_per_part(g) && i < g.slabs; ++i)
      slab(call, kernels, i, static_cast<double*>(scratch));
  }

  static void sums(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const Kernels kernels = kernels_of(call);
    const int64_t tiles = tile_count(g), chunks = chunk_count(g);
    for (int64_t i = begin; i < end; ++i) {
      const Columns columns = tile_of(g, i % tiles);
      double* const centered = call.of_chunks + i / tiles * 2 * g.channels + columns.begin;
      chunk_sums(call, kernels, i / tiles / chunks, i / tiles % chunks, columns, /*add=*/false, centered,
                 centered + g.channels);
    }
  }

  static void finish(const Call& call, int64_t slab, Columns columns, void* scratch) {
    const PlaneGeometry& g = call.geometry;
    const int64_t width = columns.width();
    double* const centered = static_cast<double*>(scratch);
    double* const sums = centered + width;
    for (int64_t c = 0; c < 2 * width; ++c) centered[c] = 0;
    for (int64_t chunk = slab * chunk_count(g); chunk < (slab + 1) * chunk_count(g); ++chunk) {
      const double* const next = call.of_chunks + chunk * 2 * g.channels + columns.begin;
      for (int64_t c = 0; c < width; ++c) {
        centered[c] += next[c];
        sums[c] += next[g.channels + c];
      }
    }
    finish_sets(call, slab, columns, centered, sums);
  }

  static void tiles(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const Kernels kernels = kernels_of(call);
    for (int64_t i = end - 1; i >= begin; --i) {
      const int64_t chunk = i / tile_count(g);
      apply_chunk(call, kernels, chunk / chunk_count(g), chunk % chunk_count(g), tile_of(g, i % tile_count(g)));
    }
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
