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

  // Where a tile of a slab begins. For apply, if g has been kept, that is grad_y and there is no more to write.
  struct Data {
    const T *grad_y, *x, *residual;
    T *grad_x, *grad_residual;
    const uint8_t* mask;  // of the slab
  };
  static TFN_INLINE Data data_of(const Call& call, int64_t slab, Columns columns) {
    const PlaneNormBackward& a = *call.arguments;
    const int64_t offset = slab * call.geometry.rows() * call.geometry.channels + columns.begin;
    return {static_cast<const T*>(a.grad_y) + offset,
            static_cast<const T*>(a.x) + offset,
            a.residual ? static_cast<const T*>(a.residual) + offset : nullptr,
            a.grad_x ? static_cast<T*>(a.grad_x) + offset : nullptr,
            a.grad_residual ? static_cast<T*>(a.grad_residual) + offset : nullptr,
            mask_of(a.mask, call.geometry, slab)};
  }
  static TFN_INLINE Data at_row(const Data& data, int64_t row, int64_t stride) {
    const int64_t i = row * stride;
    return {data.grad_y + i,
            data.x + i,
            data.residual ? data.residual + i : nullptr,
            data.grad_x ? data.grad_x + i : nullptr,
            data.grad_residual ? data.grad_residual + i : nullptr,
            nullptr};
  }

  static __attribute__((noinline)) void load_parameters(const Call& call, int64_t slab, Columns columns,
                                                        Parameters& p) {
    const PlaneNormBackward& a = *call.arguments;
    const PlaneGeometry& g = call.geometry;
    for (int64_t c = 0; c < columns.end - columns.begin; ++c) {
      const int64_t channel = columns.begin + c,
                    set = slab * g.groups + (g.per_set > 1 ? channel / g.per_set : channel);
      p.mean[c] = static_cast<const A*>(a.mean)[set];
      p.scale[c] = static_cast<const A*>(a.rstd)[set] * static_cast<const A*>(call.weight)[channel];
      p.bias[c] = static_cast<const A*>(call.bias)[channel];
      p.of_d[c] = static_cast<const A*>(call.coefficients)[2 * set];
      p.constant[c] = static_cast<const A*>(call.coefficients)[2 * set + 1];
    }
  }

  static TFN_INLINE Data data_to_apply(const Call& call, int64_t slab, Columns columns) {
    Data data = data_of(call, slab, columns);
    if (call.keeps_g) data.grad_y = data.grad_residual, data.grad_residual = nullptr;
    return data;
  }

  // kept: as data.grad_residual, or null
  template <Follow FOLLOW, int ROWS>
  static __attribute__((noinline)) void accumulate(const Data& data, T* kept, int64_t rows, int64_t stride,
                                                   int64_t columns, Parameters& p, Activation activation) {
    const int64_t write_ahead = rows_ahead<T>(kWriteAhead, ROWS, stride) * int64_t(sizeof(T));
    const int64_t read_ahead = rows_ahead<T>(kReadAhead, ROWS, stride) * int64_t(sizeof(T));
    for (int64_t begin = 0; begin < rows * stride; begin += ROWS * stride)
      for_columns<A>(columns, [=, &data, &p](int64_t c, auto lanes) __attribute__((always_inline)) {
        const Vector<A> mean = load(p.mean + c, Whole{}), scale = load(p.scale + c, Whole{});
        const Vector<A> bias = load(p.bias + c, Whole{});
        Vector<A> sum[2]{}, centered[2]{};
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const int64_t i = begin + row * stride + c;
          fetch_to_read(data.x + i, read_ahead);
          fetch_to_read(data.grad_y + i, read_ahead);
          if (FOLLOW != Follow::Nothing && data.residual) fetch_to_read(data.residual + i, read_ahead);
          const Vector<A> d = load(data.x + i, lanes) - mean;
          const Vector<A> g = gradient<FOLLOW, A>(data.grad_y, data.residual, d, scale, bias, activation, i, lanes);
          if constexpr (FOLLOW == Follow::Relu)
            if (kept) {
              fetch_to_write(kept + i, write_ahead);
              store(kept + i, g, lanes);
            }
          sum[row % 2] += g;
          centered[row % 2] += g * d;
        });
        store(p.sums + c, load(p.sums + c, Whole{}) + (sum[0] + sum[1]), Whole{});
        store(p.centered + c, load(p.centered + c, Whole{}) + (centered[0] + centered[1]), Whole{});
      });
  }

  template <Follow FOLLOW, int ROWS>
  static __attribute__((noinline)) void apply(const Data& data, int64_t rows, int64_t stride, int64_t columns,
                                              const Parameters& p, Activation activation) {
    const int64_t read_ahead = rows_ahead<T>(kReadAhead, ROWS, stride) * int64_t(sizeof(T));
    const int64_t write_ahead = rows_ahead<T>(kWriteAhead, ROWS, stride) * int64_t(sizeof(T));
    for (int64_t begin = 0; begin < rows * stride; begin += ROWS * stride)
      for_columns<A>(columns, [=, &data, &p](int64_t c, auto lanes) __attribute__((always_inline)) {
        const Vector<A> mean = load(p.mean + c, Whole{}), scale = load(p.scale + c, Whole{});
        const Vector<A> bias = load(p.bias + c, Whole{});
        const Vector<A> of_d = load(p.of_d + c, Whole{}), constant = load(p.constant + c, Whole{});
        repeat<ROWS>([&](auto row) __attribute__((always_inline)) {
          const int64_t i = begin + row * stride + c;
          fetch_to_read(data.x + i, read_ahead);
          fetch_to_read(data.grad_y + i, read_ahead);
          fetch_to_write(data.grad_x, data.grad_x ? i * int64_t(sizeof(T)) + write_ahead : 0);
          const Vector<A> d = load(data.x + i, lanes) - mean;
          const Vector<A> g = gradient<FOLLOW, A>(data.grad_y, data.residual, d, scale, bias, activation, i, lanes);
          if (data.grad_residual) store(data.grad_residual + i, g, lanes);
          if (data.grad_x) store(data.grad_x + i, Vector<A>(plane_gradient(g, d, scale, of_d, constant)), lanes);
        });
      });
  }

  template <Follow FOLLOW>
  static void sum_rows(const Call& call, const Data& data, int64_t begin, int64_t end, int64_t width, Parameters& p) {
    const int64_t stride = call.geometry.channels;
    for (int64_t c = 0; c < whole_lanes<A>(width); ++c) p.sums[c] = p.centered[c] = 0;
    for_rows<FOLLOW == Follow::Anything ? 1 : kAccumulated>(
        data.mask, begin, end, [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
          const Data rows_data = at_row(data, row, stride);
          accumulate<FOLLOW, decltype(at_once)::value>(rows_data, call.keeps_g ? rows_data.grad_residual : nullptr,
                                                       rows, stride, width, p, call.arguments->activation);
        });
  }

  template <Follow FOLLOW>
  static void apply_rows(const Call& call, const Data& data, int64_t begin, int64_t end, int64_t width,
                         const Parameters& p) {
    const int64_t stride = call.geometry.channels;
    for_rows<FOLLOW == Follow::Anything ? 1 : kApplied>(
        data.mask, begin, end, [&](auto at_once, int64_t row, int64_t rows) __attribute__((always_inline)) {
          apply<FOLLOW, decltype(at_once)::value>(at_row(data, row, stride), rows, stride, width, p,
                                                  call.arguments->activation);
        });
    for (int64_t row = begin; data.mask && row < end; ++row) {
      if (data.mask[row]) continue;
      if (data.grad_x) std::memset(data.grad_x + row * stride, 0, size_t(width) * sizeof(T));
      if (data.grad_residual) std::memset(data.grad_residual + row * stride, 0, size_t(width) * sizeof(T));
    }
  }

  struct Kernels {
    void (*sums)(const Call&, const Data&, int64_t begin, int64_t end, int64_t width, Parameters&);
    void (*apply)(const Call&, const Data&, int64_t begin, int64_t end, int64_t width, const Parameters&);
  };
  static Kernels kernels_of(const Call& call) {
    Kernels kernels = by_follow(follow_of(*call.arguments), [](auto follow) -> Kernels {
      return {sum_rows<decltype(follow)::value>, apply_rows<decltype(follow)::value>};
    });
    if (call.keeps_g) kernels.apply = apply_rows<Follow::Nothing>;
    return kernels;
  }

  struct Rows {
    int64_t begin, end;
  };
  static TFN_INLINE Rows rows_of(const PlaneGeometry& g, int64_t chunk) {
    const int64_t begin = chunk * chunk_rows(g), end = begin + chunk_rows(g);
    return {begin, end < g.rows() ? end : g.rows()};
  }

  // centered[0, width) and sums, of a tile of a chunk, are written or added to. With constant statistics grad_x is
  // written as well.
  static __attribute__((noinline)) void chunk_sums(const Call& call, const Kernels& kernels, int64_t slab,
                                                   int64_t chunk, Columns columns, bool add,
                                                   double* __restrict centered, double* __restrict sums) {
    const bool constant = !call.arguments->batch_statistics;
    const int64_t width = columns.end - columns.begin;
    const Data data = data_of(call, slab, columns);
    const Rows rows = rows_of(call.geometry, chunk);
    Parameters p;
    double of_chunk[2][kTile];
    for (int64_t c = 0; c < width; ++c) of_chunk[0][c] = of_chunk[1][c] = 0;
    load_parameters(call, slab, columns, p);
    for (int64_t strip = rows.begin; strip < rows.end; strip += kStrip) {
      const int64_t strip_end = strip + kStrip < rows.end ? strip + kStrip : rows.end;
      if (call.sums) {
        kernels.sums(call, data, strip, strip_end, width, p);
        for (int64_t c = 0; c < width; ++c) {
          of_chunk[0][c] += double(p.centered[c]);
          of_chunk[1][c] += double(p.sums[c]);
        }
      }
      if (constant && call.apply) kernels.apply(call, data, strip, strip_end, width, p);
    }
    for (int64_t c = 0; c < width; ++c) {
      centered[c] = add ? centered[c] + of_chunk[0][c] : of_chunk[0][c];
      sums[c] = add ? sums[c] + of_chunk[1][c] : of_chunk[1][c];
    }
  }

  static void finish_slab(const Call& call, int64_t slab, const double* centered, const double* sums) {
    const PlaneGeometry& g = call.geometry;
    const bool first = slab % slabs_per_part(g) == 0;
    double* const of_part = call.of_parts + slab / slabs_per_part(g) * 2 * g.channels;
    for (int64_t group = 0; group < g.groups; ++group) {
      const int64_t set = slab * g.groups + group;
      const double rstd = double(static_cast<const A*>(call.arguments->rstd)[set]);
      GradientSums of_set{};
      for (int64_t channel = group * g.per_set; channel < (group + 1) * g.per_set; ++channel) {
        const double weight = double(static_cast<const A*>(call.weight)[channel]), of_weight = centered[channel] * rstd;
        of_part[channel] = first ? of_weight : of_part[channel] + of_weight;
        of_part[g.channels + channel] = first ? sums[channel] : of_part[g.channels + channel] + sums[channel];
        of_set = {of_set.g + weight * sums[channel], of_set.g_centered + weight * centered[channel]};
      }
      finish_set<A>(call, set, of_set, call.counts[slab] * double(g.per_set));
    }
  }

  static void apply_chunk(const Call& call, const Kernels& kernels, int64_t slab, int64_t chunk, Columns columns) {
    Parameters p;
    load_parameters(call, slab, columns, p);
    const Rows rows = rows_of(call.geometry, chunk);
    kernels.apply(call, data_to_apply(call, slab, columns), rows.begin, rows.end, columns.end - columns.begin, p);
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
    finish_slab(call, slab, centered, sums);
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

  static void finish(const Call& call, int64_t slab, void* scratch) {
    const PlaneGeometry& g = call.geometry;
    double* const totals = static_cast<double*>(scratch);
    for (int64_t c = 0; c < 2 * g.channels; ++c) totals[c] = 0;
    for (int64_t chunk = slab * chunk_count(g); chunk < (slab + 1) * chunk_count(g); ++chunk)
      for (int64_t c = 0; c < 2 * g.channels; ++c) totals[c] += call.of_chunks[chunk * 2 * g.channels + c];
    finish_slab(call, slab, totals, totals + g.channels);
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
