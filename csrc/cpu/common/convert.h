// Blocks of elements whose type is known at run time only, from and to accumulators: the way of the rarer
// combinations of types, which so need no kernels of their own. Called once per block, never inlined.
#pragma once
#include "vector.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class A, class Body>
TFN_INLINE void for_columns(int64_t cols, Body body) {
  constexpr int64_t kStep = kLanes<A>;
  int64_t c = 0;
  for (; c + kStep <= cols; c += kStep) body(c, Whole{});
  if (c < cols) body(c, Part{cols - c});
}

// The same, with fetch(c, kRun) before every run of kRun elements: cache lines come whole, and must not be asked for
// with every vector in them.
template <class A>
constexpr std::integral_constant<int64_t, 128 / int64_t(sizeof(A))> kRun;
template <class A, class Fetch, class Body>
TFN_INLINE void for_columns(int64_t cols, Fetch fetch, Body body) {
  constexpr int64_t kStep = kLanes<A>;
  int64_t c = 0;
  for (; c + kRun<A> <= cols; c += kRun<A>) {
    fetch(c, kRun<A>);
    for (int64_t i = 0; i < kRun<A>; i += kStep) body(c + i, Whole{});
  }
  if (c < cols) fetch(c, kRun<A>);
  for (; c + kStep <= cols; c += kStep) body(c, Whole{});
  if (c < cols) body(c, Part{cols - c});
}

// The same in vectors that begin at column `head`, less than a vector, which is done first.
template <class A, class Fetch, class Body>
TFN_INLINE void for_columns_after(int64_t head, int64_t cols, Fetch fetch, Body body) {
  if (head > 0) body(0, Part{head});
  for_columns<A>(
      cols - head, [&](int64_t c, auto run) __attribute__((always_inline)) { fetch(head + c, run); },
      [&](int64_t c, auto lanes) __attribute__((always_inline)) { body(head + c, lanes); });
}

// Calls f with a value of the C++ type that `type` names.
template <class F>
TFN_INLINE auto by_type(DType type, F f) {
  switch (type) {
    case DType::Double:
      return f(double());
    case DType::Half:
      return f(Half());
    case DType::BFloat16:
      return f(BFloat16());
    default:
      return f(float());
  }
}

// One element. Of 16 bits it is read and written by itself: a vector, under a mask or not, would wait for the store of
// the element before it.
template <class T>
TFN_INLINE double to_double(const T* p) {
  if constexpr (sizeof(T) == 2) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return double(widen(T(), Shorts{bits})[0]);
  } else {
    return double(*p);
  }
}

// To 16 bits by way of a float rounded to odd: the second rounding then gives what a single one would.
template <class T>
TFN_INLINE void from_double(T* p, double value) {
  if constexpr (sizeof(T) == 2) {
    float odd = float(value);
    if (double(odd) != value && value == value) {
      uint32_t bits;
      std::memcpy(&bits, &odd, sizeof bits);
      bits = (bits - (__builtin_fabs(double(odd)) > __builtin_fabs(value))) | 1;
      std::memcpy(&odd, &bits, sizeof bits);
    }
    const uint16_t half = narrow(T(), splat(odd))[0];
    std::memcpy(p, &half, sizeof half);
  } else {
    *p = T(value);
  }
}

// to[0, count) = from[begin, begin + count)
template <class A>
__attribute__((noinline)) void widen_block(A* to, const void* from, DType type, int64_t begin, int64_t count) {
  by_type(type, [=](auto element) {
    using T = decltype(element);
    const T* p = static_cast<const T*>(from) + begin;
    if constexpr (std::is_same_v<A, Accumulator<T>>)
      for_columns<A>(count, [=](int64_t c, auto lanes) { store(to + c, load(p + c, lanes), lanes); });
    else
      for (int64_t c = 0; c < count; ++c) to[c] = A(to_double(p + c));
  });
}

// to[begin, begin + count) = from[0, count), rounded to nearest even once
template <class A>
__attribute__((noinline)) void narrow_block(void* to, DType type, int64_t begin, const A* from, int64_t count) {
  by_type(type, [=](auto element) {
    using T = decltype(element);
    T* p = static_cast<T*>(to) + begin;
    if constexpr (std::is_same_v<A, Accumulator<T>>)
      for_columns<A>(count, [=](int64_t c, auto lanes) { store(p + c, load(from + c, lanes), lanes); });
    else
      for (int64_t c = 0; c < count; ++c) from_double(p + c, double(from[c]));
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
