// Forward of LayerNorm (CENTERED) and RMSNorm over the rows of a matrix: interface/layer_norm.h, rms_norm.h.
//
// Memory: x (and residual) are read once; the later passes over a row find it in cache: sum (LayerNorm), centred
// squares, normalise and store. The residual add happens while a block of h is first read. Where rows are taken four
// at a time (row_loops.h, row_short.h), their chains of dependent operations overlap, and weight and bias are loaded
// once for all.
//
// Statistics: a block's mean first, then sums of d = h - mean and of d * d. sum(d), zero but for the rounding of the
// mean, corrects both (the corrected two-pass algorithm; Chan, Golub, LeVeque 1983), so a constant row has variance
// zero at any magnitude. Blocks of longer rows are merged by Chan's formula, in double. rstd is formed in double
// and rounded once. A NaN in the row makes all of its outputs NaN.
#pragma once
#include "row_loops.h"
#include "row_short.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// sum = x + residual, rounded to the type of residual. Added in float, or in double where one of them is double.
template <class X, class R>
void add(const RowNormForward& a, int64_t row, Span span) {
  using A = Accumulator<R>;
  A converted[std::is_same_v<X, A> ? kBlock : 1];
  const int64_t x_begin = row_offset(a.x_layout, row) + span.begin;
  const X* x = static_cast<const X*>(a.x) + x_begin;
  const R* residual = static_cast<const R*>(a.residual) + row_offset(a.residual_layout, row) + span.begin;
  R* sum = static_cast<R*>(a.sum) + row * a.cols + span.begin;
  if constexpr (std::is_same_v<X, A>) {
    if (a.x_type == DType::Double && !std::is_same_v<A, double>) {
      const double* wide = static_cast<const double*>(a.x) + x_begin;
      for (int64_t c = 0; c < span.count; ++c) from_double(sum + c, wide[c] + to_double(residual + c));
      return;
    }
    if (a.x_type != dtype_of<X>) {
      widen_block(converted, a.x, a.x_type, x_begin, span.count);
      x = converted;
    }
  }
  for_columns<A>(span.count, [=](int64_t c, auto lanes) __attribute__((always_inline)) {
    store(sum + c, load(x + c, lanes) + load(residual + c, lanes), lanes);
  });
}

using Add = void (*)(const RowNormForward&, int64_t row, Span);

inline Add select_add(const RowNormForward& a) {
  return by_type(a.residual_type, [&](auto r) -> Add {
    using R = decltype(r);
    if (a.x_type == a.residual_type) return add<R, R>;
    if constexpr (std::is_same_v<R, float>) {
      if (a.x_type == DType::BFloat16) return add<BFloat16, float>;
      if (a.x_type == DType::Half) return add<Half, float>;
    }
    return add<Accumulator<R>, R>;
  });
}

// The block of h that is to be normalised, after adding the residual where there is one.
template <class H>
TFN_INLINE const H* block_of_h(const RowNormForward& a, Add add, int64_t row, Span span) {
  if (!add) return static_cast<const H*>(a.x) + row_offset(a.x_layout, row) + span.begin;
  add(a, row, span);
  return static_cast<const H*>(a.sum) + row * a.cols + span.begin;
}

// Where the block of y will be stored, to fetch it in time, or null.
struct Output {
  const char* block;
  int64_t size;
};
inline Output output_of(const RowNormForward& a, int64_t row, Span span, bool past) {
  const int64_t size = size_of(a.y_type);
  if (past || a.cols * size > kFetchBytes) return {nullptr, size};
  return {static_cast<const char*>(a.y) + (row * a.cols + span.begin) * size, size};
}

template <bool CENTERED, class H>
__attribute__((noinline)) Moments moments_of(const H* h, int64_t count, Output y) {
  using A = Accumulator<H>;
  const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
    if (!y.block) return;
    for (int64_t b = 0; b < run * y.size; b += 64) fetch_to_write(y.block, c * y.size + b);
  };
  if constexpr (CENTERED) {
    double sum[1], sums[2];
    const auto nothing = [](int64_t, auto) {};
    sum_columns<A>(count, sum, nothing, [=](int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
      s[0] += load(h + c, lanes);
    });
    const A center = A(sum[0] / double(count));
    sum_columns<A>(count, sums, fetch, [=](int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
      const Vector<A> d = keep(load(h + c, lanes) - center, lanes);
      s[0] += d;
      s[1] += d * d;
    });
    const double correction = sums[0] / double(count);
    return {double(count), double(center) + correction, sums[1] - sums[0] * correction};
  } else {
    double squares[1];
    sum_columns<A>(count, squares, fetch, [=](int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
      const Vector<A> value = load(h + c, lanes);
      s[0] += value * value;
    });
    return {double(count), 0, squares[0]};
  }
}

// Chan, Golub, LeVeque: of the union of two sets, from their own.
inline Moments merge(const Moments* of_blocks, int64_t blocks) {
  Moments all = of_blocks[0];
  for (int64_t i = 1; i < blocks; ++i) {
    const Moments& next = of_blocks[i];
    const double count = all.count + next.count, distance = next.mean - all.mean;
    all = {count, all.mean + distance * next.count / count,
           all.squares + next.squares + distance * distance * all.count * next.count / count};
  }
  return all;
}

template <class A>
struct Statistics {
  A mean, rstd;
};

// Y is the type of y; where that is neither H nor another usual one, Y is A and each block is converted.
template <bool CENTERED, bool AFFINE, class H, class Y>
struct RowForward {
  using A = Accumulator<H>;

  static TFN_INLINE bool converts(const RowNormForward& a) { return std::is_same_v<Y, A> && a.y_type != dtype_of<Y>; }
  static TFN_INLINE const H* row_of_h(const RowNormForward& a, int64_t row) {
    return a.residual ? static_cast<const H*>(a.sum) + row * a.cols
                      : static_cast<const H*>(a.x) + row_offset(a.x_layout, row);
  }

  static TFN_INLINE bool goes_past(const RowNormForward& a) {
    const int64_t others = size_of(a.x_type) + (a.residual ? 2 * size_of(a.residual_type) : 0);
    const int64_t all_bytes = a.rows * a.cols * (others + int64_t(sizeof(Y)));
    return !converts(a) && rows_go_past_caches<Y>(a.y, a.cols, all_bytes, kPastInForward);
  }

  static TFN_INLINE Statistics<A> statistics_of(const RowNormForward& a, const Moments& of_row) {
    return {A(of_row.mean), A(1 / __builtin_sqrt(of_row.squares / of_row.count + a.eps))};
  }
  static TFN_INLINE void write(const RowNormForward& a, int64_t row, Statistics<A> statistics) {
    if (CENTERED && a.mean) static_cast<A*>(a.mean)[row] = statistics.mean;
    if (a.rstd) static_cast<A*>(a.rstd)[row] = statistics.rstd;
  }

  // Rows [row, row + ROWS), one block of columns. Only one row at a time may be converted, by way of `exact`.
  template <int ROWS>
  static __attribute__((noinline)) void apply_rows(const RowNormForward& a, int64_t row,
                                                   const Statistics<A>* statistics, Span span,
                                                   ParameterBlock<A>& weight, ParameterBlock<A>& bias, bool past) {
    A exact[ROWS == 1 && std::is_same_v<Y, A> ? kBlock : 1];
    const A* w = AFFINE ? weight.at(a.weight, a.param_type, span.begin, span.count, 1) : nullptr;
    const A* b = AFFINE && CENTERED ? bias.at(a.bias, a.param_type, span.begin, span.count, 0) : nullptr;
    const int64_t y_begin = row * a.cols + span.begin;
    const H* h[ROWS];
    Y* y[ROWS];
    Vector<A> mean[ROWS], rstd[ROWS];
    repeat<ROWS>([&](auto i) __attribute__((always_inline)) {
      h[i] = row_of_h(a, row + i) + span.begin;
      y[i] = static_cast<Y*>(a.y) + (y_begin + i * a.cols);
      mean[i] = splat(statistics[i].mean);
      rstd[i] = splat(statistics[i].rstd);
    });
    if constexpr (ROWS == 1 && std::is_same_v<Y, A>)
      if (converts(a)) y[0] = exact;
    const int64_t ahead = a.residual ? 0 : bytes_ahead<H>(a.x_layout, row, ROWS, a.rows, a.cols);
    const int64_t y_ahead = converts(a) || past ? 0 : output_ahead<Y>(a.cols);
    const auto fetch = [&](int64_t c, auto run) __attribute__((always_inline)) {
      repeat<ROWS>([&](auto i) __attribute__((always_inline)) {
        fetch_run_to_read<run>(h[i] + c, ahead);
        if (y_ahead) fetch_run_to_write<run>(y[i] + c, y_ahead);
      });
    };
    const int64_t head = ROWS == 1 ? columns_to_line(past, y[0], span.count) : 0;
    for_columns_after<A>(head, span.count, fetch, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      Vector<A> scale{}, shift{};
      if constexpr (AFFINE) scale = load(w + c, lanes);
      if constexpr (AFFINE && CENTERED) shift = load(b + c, lanes);
      repeat<ROWS>([&](auto i) __attribute__((always_inline)) {
        Vector<A> v = normalize(Vector<A>(load(h[i] + c, lanes)), CENTERED ? mean[i] : Vector<A>{}, rstd[i]);
        if constexpr (AFFINE && CENTERED)
          v = affine(v, scale, shift);
        else if constexpr (AFFINE)
          v = v * scale;
        store_past(past, y[i] + c, v, lanes);
      });
    });
    if constexpr (ROWS == 1 && std::is_same_v<Y, A>)
      if (converts(a)) narrow_block(a.y, a.y_type, y_begin, exact, span.count);
  }

  static Moments moments(const RowNormForward& a, int64_t row, int64_t block) {
    const Span span = block_span(block, a.cols);
    return moments_of<CENTERED>(block_of_h<H>(a, a.residual ? select_add(a) : nullptr, row, span), span.count,
                                output_of(a, row, span, goes_past(a)));
  }

  static void apply(const RowNormForward& a, int64_t row, int64_t block, const Moments& of_row) {
    ParameterBlock<A> weight, bias;
    const Statistics<A> statistics = statistics_of(a, of_row);
    if (block == 0) write(a, row, statistics);
    const bool past = goes_past(a);
    apply_rows<1>(a, row, &statistics, block_span(block, a.cols), weight, bias, past);
    finish_stores(past);
  }

  template <int ROWS>
  static TFN_INLINE void group(const RowNormForward& a, int64_t row, Add add, ParameterBlock<A>& weight,
                               ParameterBlock<A>& bias, bool past) {
    const int64_t blocks = block_count(a.cols);
    Moments of_rows[ROWS];
    for (int i = 0; i < ROWS; ++i) {
      Moments pair[2] = {};
      for (int64_t block = 0; block < blocks; ++block) {
        const Span span = block_span(block, a.cols);
        pair[block > 0] =
            moments_of<CENTERED>(block_of_h<H>(a, add, row + i, span), span.count, output_of(a, row + i, span, past));
        if (block > 0) pair[0] = merge(pair, 2);
      }
      of_rows[i] = pair[0];
    }
    Statistics<A> statistics[ROWS];
    for (int i = 0; i < ROWS; ++i) statistics[i] = statistics_of(a, of_rows[i]);
    for (int i = 0; i < ROWS; ++i) write(a, row + i, statistics[i]);
    for (int64_t block = 0; block < blocks; ++block)
      apply_rows<ROWS>(a, row, statistics, block_span(block, a.cols), weight, bias, past);
  }

  // As moments_of and statistics_of.
  static TFN_INLINE void short_statistics(const H* const (&h)[kShortGroup], int64_t count, double eps,
                                          Statistics<A> (&statistics)[kShortGroup]) {
    Four means{}, squares[1];
    if constexpr (CENTERED) {
      const FourMoments moments = short_moments<A>(h, count);
      means = moments.mean;
      squares[0] = moments.squares;
    } else {
      sum_short_rows<A>(count, squares,
                        [&](int64_t c, auto lanes, auto row, Vector<A>* s) __attribute__((always_inline)) {
                          const Vector<A> value = load(h[row] + c, lanes);
                          s[0] += value * value;
                        });
    }
    const Four rstd = 1 / square_root(squares[0] / double(count) + eps);
    for (int i = 0; i < kShortGroup; ++i) statistics[i] = {A(means[i]), A(rstd[i])};
  }

  // Up to four rows. Where there are fewer, the first is in the places of the others.
  static __attribute__((noinline)) void short_group(const RowNormForward& a, int64_t row, int64_t rows, Add add,
                                                    ParameterBlock<A>& weight, ParameterBlock<A>& bias, bool past) {
    const Span span = block_span(0, a.cols);
    const H* h[kShortGroup] = {block_of_h<H>(a, add, row, span)};
    for (int i = 1; i < kShortGroup; ++i) h[i] = i < rows ? block_of_h<H>(a, add, row + i, span) : h[0];
    const Output y = output_of(a, row, span, past);
    for (int64_t b = 0; y.block && b < rows * a.cols * y.size; b += 64) fetch_to_write(y.block, b);
    Statistics<A> statistics[kShortGroup];
    short_statistics(h, a.cols, a.eps, statistics);
    for (int i = 0; i < rows; ++i) write(a, row + i, statistics[i]);
    if (rows == kShortGroup && !converts(a))
      return apply_rows<kShortGroup>(a, row, statistics, span, weight, bias, past);
    for (int i = 0; i < rows; ++i) apply_rows<1>(a, row + i, statistics + i, span, weight, bias, past);
  }

  static void rows(const RowNormForward& a, int64_t begin, int64_t end) {
    ParameterBlock<A> weight, bias;
    const Add add = a.residual ? select_add(a) : nullptr;
    const bool past = goes_past(a);
    int64_t row = begin;
    if (a.cols <= kShortRow<H>) {
      for (; row < end; row += kShortGroup)
        short_group(a, row, end - row < kShortGroup ? end - row : kShortGroup, add, weight, bias, past);
      return finish_stores(past);
    }
    if (!converts(a) && grouped<H>(a.cols, kForwardGroup) && !(past && !lines_are_whole<Y>(a.y, a.cols)))
      for (; row + kForwardGroup <= end; row += kForwardGroup) group<kForwardGroup>(a, row, add, weight, bias, past);
    for (; row < end; ++row) group<1>(a, row, add, weight, bias, past);
    finish_stores(past);
  }

  static constexpr ForwardKernels kernels() { return {rows, moments, merge, apply}; }
};

template <bool CENTERED, bool AFFINE>
ForwardKernels select_forward(DType h_type, DType y_type) {
  return by_type(h_type, [&](auto element) -> ForwardKernels {
    using H = decltype(element);
    if (y_type == h_type) return RowForward<CENTERED, AFFINE, H, H>::kernels();
    if constexpr (std::is_same_v<H, float>)
      if (y_type == DType::BFloat16) return RowForward<CENTERED, AFFINE, H, BFloat16>::kernels();
    return RowForward<CENTERED, AFFINE, H, Accumulator<H>>::kernels();
  });
}

inline ForwardKernels forward_kernels(const RowNormForward& a, bool centered) {
  const DType h_type = a.residual ? a.residual_type : a.x_type;
  const bool affine = a.weight || a.bias;
  return centered ? (affine ? select_forward<true, true> : select_forward<true, false>)(h_type, a.y_type)
                  : (affine ? select_forward<false, true> : select_forward<false, false>)(h_type, a.y_type);
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
