// Backward of LayerNorm (CENTERED) and RMSNorm over the rows of a matrix: interface/layer_norm.h, rms_norm.h.
//
// Memory: grad_y and h are read once; the second pass over a row finds them in cache. Rows are taken several at a time
// where that pays (row_loops.h),
//
//      for each of the rows           sum(g), sum(g * (h - mean))            -> mean(g), mean(g * x_hat)
//      for each vector of columns     over the rows: grad_h, and their sum into grad_weight and grad_bias
//
// so weight is loaded, and the sums of grad_weight and grad_bias loaded and stored, once for all of them. Those sums
// are accumulators over a chunk of rows (row_norm.cpp); merge() adds the chunks up in double, in order.
#pragma once
#include "row_loops.h"
#include "row_short.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class V>
TFN_INLINE V sum_of(const V (&v)[1]) {
  return v[0];
}
template <class V>
TFN_INLINE V sum_of(const V (&v)[2]) {
  return v[0] + v[1];
}
template <class V>
TFN_INLINE V sum_of(const V (&v)[4]) {
  return (v[0] + v[1]) + (v[2] + v[3]);
}

template <class A>
struct RowGradient {
  A mean, rstd, mean_g, mean_g_x_hat;
};

// to[begin + c] = sum over the chunks, in order, of sums[chunk * stride + begin + c]; the sum over the chunks is
// formed in double, in the place of the first chunk's.
template <class A>
void merge_chunks(void* to, DType type, int64_t begin, int64_t count, A* sums, int64_t stride, int64_t chunks) {
  A* first = sums + begin;
  if (chunks > 1) {
    for_columns<A>(count, [=](int64_t c, auto lanes) __attribute__((always_inline)) {
      if constexpr (std::is_same_v<A, float>) {
        Doubles sum[2] = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          const Floats part = load(first + chunk * stride + c, lanes);
          sum[0] += low(part);
          sum[1] += high(part);
        }
        store(first + c, join(sum[0], sum[1]), lanes);
      } else {
        Doubles sum{};
        for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += load(first + chunk * stride + c, lanes);
        store(first + c, sum, lanes);
      }
    });
  }
  narrow_block(to, type, begin, first, count);
}

template <bool CENTERED, class A>
void merge(const RowNormBackward& a, int64_t begin, int64_t end, void* sums, int64_t chunks) {
  A* const of_weight = static_cast<A*>(sums);
  const int64_t stride = (1 + CENTERED) * a.cols, count = end - begin;
  if (a.grad_weight) merge_chunks(a.grad_weight, a.param_type, begin, count, of_weight, stride, chunks);
  if (CENTERED && a.grad_bias)
    merge_chunks(a.grad_bias, a.param_type, begin, count, of_weight + a.cols, stride, chunks);
}

// G is the type of grad_y; where that is neither H nor another usual one, G is A and each block is converted.
template <bool CENTERED, class G, class H>
struct RowBackward {
  using A = Accumulator<H>;

  static TFN_INLINE bool converts(const RowNormBackward& a) { return std::is_same_v<G, A> && a.y_type != dtype_of<G>; }
  static TFN_INLINE const G* grad_y_block(const RowNormBackward& a, int64_t row, Span span, A* converted) {
    const int64_t begin = row_offset(a.grad_y_layout, row) + span.begin;
    if constexpr (std::is_same_v<G, A>) {
      if (converts(a)) {
        widen_block(converted, a.grad_y, a.y_type, begin, span.count);
        return converted;
      }
    }
    return static_cast<const G*>(a.grad_y) + begin;
  }
  static TFN_INLINE const H* h_block(const RowNormBackward& a, int64_t row, Span span) {
    return static_cast<const H*>(a.h) + row_offset(a.h_layout, row) + span.begin;
  }
  static TFN_INLINE H* grad_h_block(const RowNormBackward& a, int64_t row, Span span) {
    return a.grad_h ? static_cast<H*>(a.grad_h) + row * a.cols + span.begin : nullptr;
  }
  static TFN_INLINE bool goes_past(const RowNormBackward& a) {
    const int64_t read = size_of(a.y_type) + (a.grad_sum ? 2 : 1) * int64_t(sizeof(H));
    // Rows that are taken several at a time stay so: how many decides the order of the parameters' sums.
    const int64_t all_bytes = a.rows * a.cols * (read + int64_t(sizeof(H)));
    return a.grad_h && rows_go_past_caches<H>(a.grad_h, a.cols, all_bytes, kPastInBackward) &&
           (lines_are_whole<H>(a.grad_h, a.cols) || !grouped<H>(a.cols, kBackwardGroup));
  }
  static TFN_INLINE A mean_of(const RowNormBackward& a, int64_t row) {
    return CENTERED ? static_cast<const A*>(a.mean)[row] : A(0);
  }

  static __attribute__((noinline)) GradientSums block_sums(const G* grad_y, const H* h, const A* weight, A mean,
                                                           int64_t count, const H* grad_h) {
    double totals[1 + CENTERED];
    const auto fetch = [=](int64_t c, auto run) __attribute__((always_inline)) {
      if (grad_h) fetch_run_to_write<run>(grad_h + c, 0);
    };
    sum_columns<A>(count, totals, fetch, [=](int64_t c, auto lanes, Vector<A>* s) __attribute__((always_inline)) {
      const Vector<A> g = load(grad_y + c, lanes) * load(weight + c, lanes);
      s[0] += g * (CENTERED ? load(h + c, lanes) - mean : load(h + c, lanes));
      if constexpr (CENTERED) s[1] += g;
    });
    return {totals[CENTERED], totals[0]};
  }

  static TFN_INLINE RowGradient<A> row_gradient(const RowNormBackward& a, int64_t row, const GradientSums& sums) {
    const A rstd = static_cast<const A*>(a.rstd)[row];
    const double cols = double(a.cols);
    return {mean_of(a, row), rstd, CENTERED ? A(sums.g / cols) : A(0), A(sums.g_centered * double(rstd) / cols)};
  }

  // The same where it is to be fetched before apply writes it, else null.
  static TFN_INLINE const H* grad_h_to_fetch(const RowNormBackward& a, int64_t row, Span span, bool past) {
    return past || output_ahead<H>(a.cols) ? nullptr : grad_h_block(a, row, span);
  }

  // Rows [row, row + ROWS), one block of columns. weight_sums and bias_sums begin at the block; null: not wanted.
  // EXTRAS: there may be grad_sum or grad_x, or no grad_h. One row has a kernel for all cases, several have one for
  // each usual case. grad_x is rounded from the accumulators themselves, which wait in `exact`; only one row has it.
  template <int ROWS, bool EXTRAS>
  static __attribute__((noinline)) void apply(const RowNormBackward& a, int64_t row, const RowGradient<A>* scalars,
                                              Span span, const A* weight, A* weight_sums, A* bias_sums, A* converted,
                                              A* exact, bool past) {
    const G* grad_y[ROWS];
    const H* h[ROWS];
    const H* grad_sum[ROWS];
    H* grad_h[ROWS];
    for (int i = 0; i < ROWS; ++i) {
      grad_y[i] = grad_y_block(a, row + i, span, converted);
      h[i] = h_block(a, row + i, span);
      grad_sum[i] = EXTRAS && a.grad_sum
                        ? static_cast<const H*>(a.grad_sum) + row_offset(a.grad_sum_layout, row + i) + span.begin
                        : nullptr;
      grad_h[i] = grad_h_block(a, row + i, span);
    }
    Vector<A> mean[ROWS], rstd[ROWS], mean_g[ROWS], mean_g_x_hat[ROWS];
    repeat<ROWS>([&](auto i) __attribute__((always_inline)) {
      mean[i] = splat(scalars[i].mean);
      rstd[i] = splat(scalars[i].rstd);
      mean_g[i] = splat(scalars[i].mean_g);
      mean_g_x_hat[i] = splat(scalars[i].mean_g_x_hat);
    });
    const int64_t grad_y_ahead = converts(a) ? 0 : bytes_ahead<G>(a.grad_y_layout, row, ROWS, a.rows, a.cols);
    const int64_t h_ahead = bytes_ahead<H>(a.h_layout, row, ROWS, a.rows, a.cols);
    const int64_t grad_sum_ahead =
        EXTRAS && a.grad_sum ? bytes_ahead<H>(a.grad_sum_layout, row, ROWS, a.rows, a.cols) : 0;
    const int64_t grad_h_ahead = a.grad_h && !past ? output_ahead<H>(a.cols) : 0;
    const bool parameters = ROWS > 1 || weight_sums;
    const bool has_grad_sum = EXTRAS && a.grad_sum, has_grad_h = !EXTRAS || a.grad_h;
    const bool has_grad_x = EXTRAS && ROWS == 1 && a.grad_x;
    const auto fetch = [&](int64_t c, auto run) __attribute__((always_inline)) {
      repeat<ROWS>([&](auto i) __attribute__((always_inline)) {
        fetch_run_to_read<run>(grad_y[i] + c, grad_y_ahead);
        fetch_run_to_read<run>(h[i] + c, h_ahead);
        if (grad_sum_ahead) fetch_run_to_read<run>(grad_sum[i] + c, grad_sum_ahead);
        if (grad_h_ahead) fetch_run_to_write<run>(grad_h[i] + c, grad_h_ahead);
      });
    };
    const int64_t head = ROWS == 1 && has_grad_h ? columns_to_line(past, grad_h[0], span.count) : 0;
    for_columns_after<A>(head, span.count, fetch, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      const Vector<A> w = load(weight + c, lanes);
      Vector<A> of_weight[ROWS], of_bias[ROWS];
      repeat<ROWS>([&](auto i) __attribute__((always_inline)) {
        const Vector<A> gradient = load(grad_y[i] + c, lanes);
        const Vector<A> x_hat = normalize(Vector<A>(load(h[i] + c, lanes)), CENTERED ? mean[i] : Vector<A>{}, rstd[i]);
        of_weight[i] = gradient * x_hat;
        of_bias[i] = gradient;
        Vector<A> result = input_gradient(Vector<A>(gradient * w), x_hat, rstd[i], CENTERED ? mean_g[i] : Vector<A>{},
                                          mean_g_x_hat[i]);
        if (has_grad_sum) result = rounded(result) + load(grad_sum[i] + c, lanes);
        if (has_grad_h) store_past(past, grad_h[i] + c, result, lanes);
        if (has_grad_x) store(exact + c, result, lanes);
      });
      if (parameters) {
        store(weight_sums + c, load(weight_sums + c, lanes) + sum_of(of_weight), lanes);
        if constexpr (CENTERED) store(bias_sums + c, load(bias_sums + c, lanes) + sum_of(of_bias), lanes);
      }
    });
    if (has_grad_x) narrow_block(a.grad_x, a.x_type, row * a.cols + span.begin, exact, span.count);
  }

  template <int ROWS, bool EXTRAS>
  static __attribute__((noinline)) void group(const RowNormBackward& a, int64_t row, ParameterBlock<A>& parameter,
                                              A* weight_sums, A* bias_sums, bool past) {
    constexpr int64_t kBuffer = ROWS == 1 ? kBlock : 1;  // a group of several rows converts nothing
    A converted[kBuffer], exact[kBuffer];
    RowGradient<A> scalars[ROWS];
    GradientSums sums[ROWS] = {};
    const int64_t blocks = block_count(a.cols);
    for (int64_t block = 0; block < blocks; ++block) {
      const Span span = block_span(block, a.cols);
      const A* weight = parameter.at(a.weight, a.param_type, span.begin, span.count, 1);
      for (int i = 0; i < ROWS; ++i) {
        const GradientSums part =
            block_sums(grad_y_block(a, row + i, span, converted), h_block(a, row + i, span), weight,
                       mean_of(a, row + i), span.count, grad_h_to_fetch(a, row + i, span, past));
        sums[i] = {sums[i].g + part.g, sums[i].g_centered + part.g_centered};
      }
    }
    for (int i = 0; i < ROWS; ++i) scalars[i] = row_gradient(a, row + i, sums[i]);
    for (int64_t block = 0; block < blocks; ++block) {
      const Span span = block_span(block, a.cols);
      apply<ROWS, EXTRAS>(a, row, scalars, span, parameter.at(a.weight, a.param_type, span.begin, span.count, 1),
                          weight_sums ? weight_sums + span.begin : nullptr,
                          CENTERED && bias_sums ? bias_sums + span.begin : nullptr, converted, exact, past);
    }
  }

  // Up to four rows, as group; grad_y need not be converted. Where there are fewer, the first is in the places of the
  // others.
  static __attribute__((noinline)) void short_group(const RowNormBackward& a, int64_t row, int64_t rows,
                                                    ParameterBlock<A>& parameter, A* weight_sums, A* bias_sums,
                                                    bool past) {
    const Span span = block_span(0, a.cols);
    const A* weight = parameter.at(a.weight, a.param_type, 0, a.cols, 1);
    const G* grad_y[kShortGroup];
    const H* h[kShortGroup];
    A mean[kShortGroup];
    for (int i = 0; i < kShortGroup; ++i) {
      const int64_t at = row + (i < rows ? i : 0);
      grad_y[i] = grad_y_block(a, at, span, nullptr);
      h[i] = h_block(a, at, span);
      mean[i] = mean_of(a, at);
    }
    if (a.grad_h && !past)
      for (int64_t b = 0; b < rows * a.cols * int64_t(sizeof(H)); b += 64)
        fetch_to_write(grad_h_block(a, row, span), b);
    Four totals[1 + CENTERED];
    sum_short_rows<A>(a.cols, totals, [&](int64_t c, auto lanes, auto i, Vector<A>* s) __attribute__((always_inline)) {
      const Vector<A> g = load(grad_y[i] + c, lanes) * load(weight + c, lanes);
      s[0] += g * (CENTERED ? load(h[i] + c, lanes) - mean[i] : load(h[i] + c, lanes));
      if constexpr (CENTERED) s[1] += g;
    });
    RowGradient<A> scalars[kShortGroup];
    for (int i = 0; i < rows; ++i) scalars[i] = row_gradient(a, row + i, {totals[CENTERED][i], totals[0][i]});
    A exact[kShortRow<H>];
    int64_t i = 0;
    if (weight_sums && a.grad_h && !a.grad_x) {
      const auto several = a.grad_sum ? apply<kBackwardGroup, true> : apply<kBackwardGroup, false>;
      for (; i + kBackwardGroup <= rows; i += kBackwardGroup)
        several(a, row + i, scalars + i, span, weight, weight_sums, bias_sums, nullptr, exact, past);
    }
    for (; i < rows; ++i)
      apply<1, true>(a, row + i, scalars + i, span, weight, weight_sums, bias_sums, nullptr, exact, past);
  }

  static void rows(const RowNormBackward& a, int64_t begin, int64_t end, void* weight_sums, void* bias_sums) {
    ParameterBlock<A> parameter;
    A* const of_weight = static_cast<A*>(weight_sums);
    A* const of_bias = static_cast<A*>(bias_sums);
    if (of_weight) std::memset(of_weight, 0, size_t(a.cols) * sizeof(A));
    if (of_bias) std::memset(of_bias, 0, size_t(a.cols) * sizeof(A));
    const bool past = goes_past(a);
    int64_t row = begin;
    if (a.cols <= kShortRow<H> && !converts(a))
      for (; row < end; row += kShortGroup)
        short_group(a, row, end - row < kShortGroup ? end - row : kShortGroup, parameter, of_weight, of_bias, past);
    const bool usual = of_weight && a.grad_h && !a.grad_x && !converts(a);
    if (usual && grouped<H>(a.cols, kBackwardGroup)) {
      const auto several = a.grad_sum ? group<kBackwardGroup, true> : group<kBackwardGroup, false>;
      for (; row + kBackwardGroup <= end; row += kBackwardGroup) several(a, row, parameter, of_weight, of_bias, past);
    }
    for (; row < end; ++row) group<1, true>(a, row, parameter, of_weight, of_bias, past);
    finish_stores(past);
  }

  static GradientSums sums(const RowNormBackward& a, int64_t row, int64_t block) {
    ParameterBlock<A> parameter;
    A converted[kBlock];
    const Span span = block_span(block, a.cols);
    const A* weight = parameter.at(a.weight, a.param_type, span.begin, span.count, 1);
    return block_sums(grad_y_block(a, row, span, converted), h_block(a, row, span), weight, mean_of(a, row), span.count,
                      grad_h_to_fetch(a, row, span, goes_past(a)));
  }

  static void columns(const RowNormBackward& a, int64_t block, const GradientSums* of_rows) {
    ParameterBlock<A> parameter;
    A converted[kBlock], exact[kBlock], weight_sums[kBlock], bias_sums[kBlock];
    const Span span = block_span(block, a.cols);
    const A* weight = parameter.at(a.weight, a.param_type, span.begin, span.count, 1);
    std::memset(weight_sums, 0, size_t(span.count) * sizeof(A));
    if (CENTERED) std::memset(bias_sums, 0, size_t(span.count) * sizeof(A));
    const bool past = goes_past(a);
    for (int64_t row = 0; row < a.rows; ++row) {
      const RowGradient<A> scalars = row_gradient(a, row, of_rows[row]);
      apply<1, true>(a, row, &scalars, span, weight, weight_sums, bias_sums, converted, exact, past);
    }
    finish_stores(past);
    if (a.grad_weight) narrow_block(a.grad_weight, a.param_type, span.begin, weight_sums, span.count);
    if (CENTERED && a.grad_bias) narrow_block(a.grad_bias, a.param_type, span.begin, bias_sums, span.count);
  }

  static constexpr BackwardKernels kernels() { return {rows, sums, columns, merge<CENTERED, A>}; }
};

template <bool CENTERED>
BackwardKernels select_backward(DType h_type, DType y_type) {
  return by_type(h_type, [&](auto element) -> BackwardKernels {
    using H = decltype(element);
    if (y_type == h_type) return RowBackward<CENTERED, H, H>::kernels();
    if constexpr (std::is_same_v<H, float>)
      if (y_type == DType::BFloat16) return RowBackward<CENTERED, BFloat16, H>::kernels();
    return RowBackward<CENTERED, Accumulator<H>, H>::kernels();
  });
}

inline BackwardKernels backward_kernels(const RowNormBackward& a, bool centered) {
  return (centered ? select_backward<true> : select_backward<false>)(a.h_type, a.y_type);
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
