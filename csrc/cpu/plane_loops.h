// What the plane kernels share: sums over the segments of a block, what follows the norm (residual, activation, mask),
// and the merging of moments.
#pragma once
#include "../interface/plane_signs.h"
#include "../math/normalize.h"
#include "common/activation.h"
#include "common/convert.h"
#include "common/signs.h"
#include "plane_kernels.h"
#include "row_short.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// Planes of fewer bytes than this lie too far apart, in a channel of a batch, for the hardware to fetch ahead.
constexpr int64_t kShortPlane = 4096;

// How far ahead, in bytes, inputs and outputs are fetched: further than the hardware does by itself (measured: a third
// of the time of a pass that writes, a tenth of one that reads). An address beyond the end does no harm.
constexpr int64_t kReadAhead = 8192, kWriteAhead = 4096;

// A set of up to this many bytes of x is still in the second-level cache when apply comes, from whichever end it is
// taken: from the front, so that what is fetched ahead is what comes next.
constexpr int64_t kSmallSet = 1 << 18;
template <class T>
TFN_INLINE bool small_sets(const PlaneGeometry& g) {
  return g.rows() * g.per_set * int64_t(sizeof(T)) <= kSmallSet;
}
// The planes of a batch's channel lie apart, where the hardware does not look; sets of a few thousand bytes fit into
// the first-level cache, with the set after them. Of these, outputs are fetched while their sums are formed (but where
// four sets are taken at once), and the inputs of the next set, so many bytes ahead, while one is applied (measured: a
// tenth of the time; nothing for larger sets that lie side by side). Else zero.
constexpr int64_t kNearSet = 8192;
template <class T>
TFN_INLINE int64_t bytes_to_next_set(const PlaneGeometry& g) {
  const int64_t bytes = g.per_set * g.spatial * int64_t(sizeof(T));
  return g.batch ? small_sets<T>(g) ? bytes : 0 : bytes <= kNearSet ? bytes : 0;
}

// The same in rows of `width` elements, where groups of `rows` rows follow each other.
template <class T>
TFN_INLINE int64_t rows_ahead(int64_t bytes, int64_t rows, int64_t width) {
  const int64_t group = rows * width * int64_t(sizeof(T));
  return (bytes + group - 1) / group * rows;
}

// Sums of so few elements that lie side by side are formed four at a time (row_short.h): what follows the sums of one
// would take longer than its elements do.
constexpr int64_t kShortRun = 2048;  // bytes
template <class T>
TFN_INLINE bool short_run(int64_t elements) {
  return elements * int64_t(sizeof(T)) <= kShortRun;
}

// What follows  v = (x - mean) * scale + bias;  scale = rstd * weight. Signs: a ReLU whose signs forward has kept
// (backward only). Silu: without a residual. Anything: found out at run time.
enum class Follow { Nothing, Relu, Signs, Silu, Anything };
template <Follow FOLLOW>
constexpr bool kSmooth = FOLLOW == Follow::Silu || FOLLOW == Follow::Anything;  // there may be an exp or erf

// f(std::integral_constant<Follow, follow>): the kernel for the usual cases, or the one that looks at run time.
template <class F>
TFN_INLINE auto by_follow(const PlaneNormForward& a, F f) {
  if (a.mask) return f(std::integral_constant<Follow, Follow::Anything>());
  if (a.activation == Activation::Relu) return f(std::integral_constant<Follow, Follow::Relu>());
  if (a.activation == Activation::Silu && !a.residual) return f(std::integral_constant<Follow, Follow::Silu>());
  if (a.activation == Activation::None && !a.residual) return f(std::integral_constant<Follow, Follow::Nothing>());
  return f(std::integral_constant<Follow, Follow::Anything>());
}
template <class F>
TFN_INLINE auto by_follow(const PlaneNormBackward& a, F f) {
  if (a.mask) return f(std::integral_constant<Follow, Follow::Anything>());
  if (a.activation == Activation::None) return f(std::integral_constant<Follow, Follow::Nothing>());
  if (a.activation == Activation::Silu && !a.residual) return f(std::integral_constant<Follow, Follow::Silu>());
  if (a.activation != Activation::Relu || (a.residual && !a.signs))
    return f(std::integral_constant<Follow, Follow::Anything>());
  if (a.signs) return f(std::integral_constant<Follow, Follow::Signs>());
  return f(std::integral_constant<Follow, Follow::Relu>());
}

// v where the mask's byte is 1, else zero, whatever v is.
template <class A, class LANES>
TFN_INLINE Vector<A> counted(const uint8_t* mask, Vector<A> v, LANES lanes) {
  using Integers = std::conditional_t<std::is_same_v<A, float>, Ints, Longs>;
  if constexpr (std::is_same_v<LANES, Even> || std::is_same_v<LANES, Odd>) {
    const Shorts pairs = load_bits<Shorts>(mask, Whole{}) >> (std::is_same_v<LANES, Odd> ? 8 : 0) & 0xff;
    return __builtin_convertvector(pairs, Integers) != 0 ? v : Vector<A>{};
  } else {
    typename VectorOf<uint8_t, int(kLanes<A>)>::Type bytes{};
    if constexpr (std::is_same_v<LANES, Whole>)
      std::memcpy(&bytes, mask, sizeof bytes);
    else
      std::memcpy(&bytes, mask, size_t(lanes.count));
    return __builtin_convertvector(bytes, Integers) != 0 ? v : Vector<A>{};
  }
}

// Of paired elements: pair(c) for [c, c + 2 * kLanes), up to the last whole such ones, where it ends.
template <class Fetch, class Pair>
TFN_INLINE int64_t for_pairs(int64_t count, Fetch fetch, Pair pair) {
  constexpr int64_t kStep = 2 * kLanes<float>;
  int64_t c = 0;
  for (; c + kRun<float> <= count; c += kRun<float>) {
    fetch(c, kRun<float>);
    for (int64_t i = 0; i < kRun<float>; i += kStep) pair(c + i);
  }
  if (c < count) fetch(c, kRun<float>);
  for (; c + kStep <= count; c += kStep) pair(c);
  return c;
}

// body(c, lanes...) for all of `count` elements of type T that lie side by side: with one argument `lanes`, or for
// pairs with Even{}, Odd{}; what the body touches is of that type. fetch(c, count) as in for_columns; here and below.
template <class T, class Fetch, class Body>
TFN_INLINE void for_lanes(int64_t count, Fetch fetch, Body body) {
  if constexpr (kPaired<T>) {
    const int64_t begin =
        for_pairs(count, fetch, [&](int64_t c) __attribute__((always_inline)) { body(c, Even{}, Odd{}); });
    for_columns<float>(count - begin,
                       [&](int64_t c, auto lanes) __attribute__((always_inline)) { body(begin + c, lanes); });
  } else {
    for_columns<Accumulator<T>>(count, fetch, body);
  }
}
template <class T, class Fetch, class Body>
TFN_INLINE void for_elements(int64_t count, Fetch fetch, Body body) {
  for_lanes<T>(count, fetch, [&](int64_t c, auto... lanes) __attribute__((always_inline)) { (body(c, lanes), ...); });
}

// The same for what is written: body(c, lanes) gives a vector for each of `outputs`; a null one is not written. A NaN
// of it must be plain (store_pair), as it is where parameters are.
// `signs`, or null: takes those of the first output. past: as store_past.
template <class A, int N>
struct Values {
  Vector<A> of[N];
};
template <class T, int N, class Fetch, class Body>
TFN_INLINE void write_elements(int64_t count, T* const (&outputs)[N], uint8_t* signs, bool past, Fetch fetch,
                               Body body) {
  using A = Accumulator<T>;
  const auto write = [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Values<A, N> values = body(c, lanes);
    repeat<N>([&](auto i) __attribute__((always_inline)) {
      if (outputs[i]) store_past(past, outputs[i] + c, values.of[i], lanes);
    });
    if (signs) store_signs<T>(signs, c, values.of[0], lanes);
  };
  if constexpr (kPaired<T>) {
    const int64_t begin = for_pairs(count, fetch, [&](int64_t c) __attribute__((always_inline)) {
      const Values<A, N> even = body(c, Even{}), odd = body(c, Odd{});
      repeat<N>([&](auto i) __attribute__((always_inline)) {
        if (outputs[i]) store_pair(past, outputs[i] + c, even.of[i], odd.of[i]);
      });
      if (signs) store_sign_pair(signs, c, even.of[0], odd.of[0]);
    });
    for_columns<A>(count - begin,
                   [&](int64_t c, auto lanes) __attribute__((always_inline)) { write(begin + c, lanes); });
  } else {
    for_columns<A>(count, fetch, write);
  }
}

// f(0, first), f(1, second), ... of all lanes, numbers as constants.
template <class F, class... LANES>
TFN_INLINE void each_lane(F f, LANES... lanes) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>(), lanes), ...);
  }(std::make_integer_sequence<int, int(sizeof...(LANES))>());
}
// Of all lanes; a pair is read once and written at once.
template <class T, class... LANES, class A = Accumulator<T>>
TFN_INLINE Values<A, int(sizeof...(LANES))> load_each(const T* p, LANES... lanes) {
  if constexpr (sizeof...(LANES) == 2) {
    const Words pair = rounded(load_bits<Words>(p, Whole{}));
    return {{(Floats)(pair << 16), (Floats)(pair & 0xffff0000u)}};
  } else {
    return {{load(p, lanes)...}};
  }
}
template <class T, int N, class... LANES, class A = Accumulator<T>>
TFN_INLINE void store_each(bool past, T* p, const Values<A, N>& values, LANES... lanes) {
  if constexpr (N == 2)
    store_pair(past, p, values.of[0], values.of[1]);
  else
    store_past(past, p, values.of[0], lanes...);
}
template <class T, int N, class... LANES, class A = Accumulator<T>>
TFN_INLINE void store_signs_of_each(uint8_t* signs, int64_t c, const Values<A, N>& values, LANES... lanes) {
  if constexpr (N == 2)
    store_sign_pair(signs, c, values.of[0], values.of[1]);
  else
    store_signs<T>(signs, c, values.of[0], lanes...);
}

// A number for each column, in the order in which for_lanes takes columns: of a pair first those of the even ones.
template <int N, class A>
TFN_INLINE Values<A, N> load_numbers(const A* numbers) {
  Values<A, N> values;
  repeat<N>([&](auto i) __attribute__((always_inline)) { values.of[i] = load(numbers + i * kLanes<A>, Whole{}); });
  return values;
}
template <int N, class A>
TFN_INLINE void add_numbers(A* numbers, const Values<A, N>& values) {
  repeat<N>([&](auto i) __attribute__((always_inline)) {
    store(numbers + i * kLanes<A>, load(numbers + i * kLanes<A>, Whole{}) + values.of[i], Whole{});
  });
}
template <class T>
TFN_INLINE int64_t place_of_column(int64_t column, int64_t columns) {
  constexpr int64_t kPair = 2 * kLanes<float>;
  if (!kPaired<T> || column >= columns / kPair * kPair) return column;
  return column / kPair * kPair + column % 2 * kLanes<float> + column % kPair / 2;
}
template <class T, class A>
TFN_INLINE void put_in_order([[maybe_unused]] A* numbers, [[maybe_unused]] int64_t columns) {
#if TFN_VECTOR_BYTES >= 32
  if constexpr (kPaired<T>) {
    constexpr int64_t kStep = kLanes<float>;
    Ints even, odd;
    for (int i = 0; i < kStep; ++i) odd[i] = (even[i] = 2 * i) + 1;
    for (int64_t c = 0; c + 2 * kStep <= columns; c += 2 * kStep) {
      const Floats first = load(numbers + c, Whole{}), second = load(numbers + c + kStep, Whole{});
      store(numbers + c, __builtin_shuffle(first, second, even), Whole{});
      store(numbers + c + kStep, __builtin_shuffle(first, second, odd), Whole{});
    }
  }
#endif
}

// The signs of a run from element `skipped` on, or null.
template <class T, class BYTE>
TFN_INLINE BYTE* signs_of(BYTE* signs, int64_t run, int64_t elements, int64_t skipped) {
  return signs ? signs + run * sign_bytes(elements, dtype_of<T>) + sign_bytes(skipped, dtype_of<T>) : nullptr;
}

template <Follow FOLLOW, class A, class T, class LANES>
TFN_INLINE Vector<A> followed(Vector<A> v, const T* residual, Activation activation, int64_t c, LANES lanes) {
  if constexpr (FOLLOW == Follow::Nothing) return v;
  if constexpr (FOLLOW == Follow::Silu && std::is_same_v<A, float>) return silu(v);
  if (residual) v = v + load(residual + c, lanes);
  return FOLLOW == Follow::Relu ? relu(v) : activated<A>(activation, v);
}

// grad_y * activation'(v), from the signs of the activation's argument v, or from v itself, formed as in forward;
// d = x - mean. Element c of the run where residual and signs begin.
template <Follow FOLLOW, class A, class T, class LANES>
TFN_INLINE Vector<A> gradient(Vector<A> g, const T* residual, const uint8_t* signs, Vector<A> d, Vector<A> scale,
                              Vector<A> bias, Activation activation, int64_t c, LANES lanes) {
  if constexpr (FOLLOW == Follow::Nothing) return g;
  if constexpr (FOLLOW == Follow::Signs) return where_positive<T>(signs, c, g, Vector<A>{}, lanes);
  if constexpr (FOLLOW == Follow::Anything)
    if (signs)
      return where_positive<T>(signs, c, g, activation == Activation::Relu ? Vector<A>{} : g * A(leaky_slope), lanes);
  Vector<A> v = affine(d, scale, bias);
  if constexpr (FOLLOW == Follow::Relu) return v > 0 ? g : Vector<A>{};
  if constexpr (FOLLOW == Follow::Silu && std::is_same_v<A, float>) return g * silu_slope(v);
  if (residual) v = v + load(residual + c, lanes);
  return activation == Activation::None ? g : g * slope<A>(activation, v);
}

// totals[i] = sum over `segments` runs of `count` elements of what body(segment, c, lanes, sums) adds to sums[i]. As
// sum_columns (row_loops.h), and as exact: chains and terms per lane run on from one segment to the next.
// fetch(segment, c, count) as there.
template <class T, int SUMS, class Fetch, class Body>
TFN_INLINE void sum_segments(int64_t segments, int64_t count, double (&totals)[SUMS], Fetch fetch, Body body) {
  using A = Accumulator<T>;
  constexpr int64_t kStep = kLanes<A>, kChains = 4, kGroup = kChains * kStep, kTerms = 16;
  Doubles wide[SUMS] = {};
  Vector<A> sums[kChains][SUMS] = {};
  int64_t room = kTerms;
  for (int64_t segment = 0; segment < segments; ++segment) {
    for (int64_t c = 0; c < count;) {
      const int64_t end = count - c < room * kGroup ? count : c + room * kGroup;
      for (; c + kGroup <= end; c += kGroup, --room) {
        fetch(segment, c, std::integral_constant<int64_t, kGroup>());
        repeat<kChains>([&](auto chain) __attribute__((always_inline)) {
          if constexpr (kPaired<T>)
            body(segment, c + chain / 2 * 2 * kStep, std::conditional_t<chain % 2 == 0, Even, Odd>{}, sums[chain]);
          else
            body(segment, c + chain * kStep, Whole{}, sums[chain]);
        });
      }
      if (c < end) {
        fetch(segment, c, std::integral_constant<int64_t, kGroup>());
        if constexpr (kPaired<T>)  // the same vectors as in for_elements
          if (c + 2 * kStep <= end) {
            body(segment, c, Even{}, sums[0]);
            body(segment, c, Odd{}, sums[1]);
            c += 2 * kStep;
          }
        constexpr int64_t kTaken = kPaired<T> ? 2 : 0;
        repeat<kChains - kTaken>([&](auto i) __attribute__((always_inline)) {
          constexpr int64_t chain = kTaken + decltype(i)::value;
          if (c + kStep <= end) {
            body(segment, c, Whole{}, sums[chain]);
            c += kStep;
          } else if (c < end) {
            body(segment, c, Part{end - c}, sums[chain]);
            c = end;
          }
        });
        --room;
      }
      if (room > 0 && (c < count || segment + 1 < segments)) continue;
      room = kTerms;
      repeat<SUMS>([&](auto i) __attribute__((always_inline)) {
        const Vector<A> sum = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
        if constexpr (std::is_same_v<A, float>)
          wide[i] += low(sum) + high(sum);
        else
          wide[i] += sum;
        repeat<kChains>([&](auto chain) __attribute__((always_inline)) { sums[chain][i] = Vector<A>{}; });
      });
    }
  }
  for (int i = 0; i < SUMS; ++i) totals[i] = total(wide[i]);
}

// Chan, Golub, LeVeque; either set may be empty.
inline Moments merge_two(const Moments& one, const Moments& next) {
  if (next.count == 0) return one;
  if (one.count == 0) return next;
  const double count = one.count + next.count, distance = next.mean - one.mean;
  return {count, one.mean + distance * next.count / count,
          one.squares + next.squares + distance * distance * one.count * next.count / count};
}

inline double variance_of(const Moments& moments) {
  const double variance = moments.count > 0 ? moments.squares / moments.count : 0;
  return variance < 0 ? 0 : variance;  // a NaN stays
}
inline Running<double> running_of(const PlaneNormForward& a, int64_t channel) {
  return by_type(a.running_type, [&](auto element) -> Running<double> {
    using R = decltype(element);
    return {to_double(static_cast<const R*>(a.running_mean) + channel),
            to_double(static_cast<const R*>(a.running_var) + channel)};
  });
}

// Batch Renormalization (math/renorm.h): its shift goes into the bias.
template <class A>
__attribute__((noinline)) void finish_renormed_set(const PlaneForwardCall& call, int64_t set, const Moments& moments) {
  const PlaneNormForward& a = *call.arguments;
  const double bessel = moments.count > 1 ? moments.count / (moments.count - 1) : 1;
  const auto n = renormed(a.renorm, moments.mean, variance_of(moments), bessel, running_of(a, set), a.eps, call.limits);
  const int64_t sets = call.geometry.sets();
  const double values[renormed_values] = {n.scale, n.shift, n.of_product, n.of_sum, n.r, n.d};
  for (int64_t i = 0; i < renormed_values; ++i) static_cast<A*>(call.rstd)[i * sets + set] = A(values[i]);
  static_cast<A*>(call.bias)[set] += A(n.shift) * static_cast<const A*>(call.weight)[set];
}

// The last step of a set: mean and rstd from its moments.
template <class A>
TFN_INLINE void finish_set(const PlaneForwardCall& call, int64_t set, const Moments& moments) {
  static_cast<A*>(call.mean)[set] = A(moments.mean);
  if (call.arguments->renorm == Renorm::None)
    static_cast<A*>(call.rstd)[set] = A(1 / __builtin_sqrt(variance_of(moments) + call.arguments->eps));
  else
    finish_renormed_set<A>(call, set, moments);
  if (call.of_sets) call.of_sets[set] = moments;
}

// The means over a set, from its sums of g * weight and g * weight * (x - mean), as coefficients of grad_x:
//   rstd * (g * weight - mean_g - x_hat * mean_g_x_hat) = rstd * weight * g + of_d * (x - mean) + constant
template <class A>
TFN_INLINE void finish_set(const PlaneBackwardCall& call, int64_t set, const GradientSums& sums, double count) {
  if (call.of_planes) {
    call.of_planes[set] = sums;
    return;
  }
  const double rstd = double(static_cast<const A*>(call.arguments->rstd)[set]);
  const bool constant = !call.arguments->batch_statistics || count == 0;
  A* const coefficients = static_cast<A*>(call.coefficients) + 2 * set;
  double of_product = -(rstd * rstd), of_sum = 0;
  if (call.arguments->renorm != Renorm::None) {
    const int64_t sets = call.geometry.sets();
    of_product = double(static_cast<const A*>(call.arguments->rstd)[2 * sets + set]);
    of_sum = double(static_cast<const A*>(call.arguments->rstd)[3 * sets + set]);
  }
  coefficients[0] = constant ? A(0) : A((of_product * (sums.g_centered * rstd) + of_sum * sums.g) / count);
  coefficients[1] = constant ? A(0) : A(-(rstd * sums.g / count));
}

inline void widen(void* to, DType stat, const void* from, DType type, int64_t count, double fill) {
  by_type(stat, [=](auto element) {
    if constexpr (sizeof(element) > 2) {
      auto* const p = static_cast<decltype(element)*>(to);
      if (from)
        widen_block(p, from, type, 0, count);
      else
        for (int64_t c = 0; c < count; ++c) p[c] = decltype(element)(fill);
    }
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
