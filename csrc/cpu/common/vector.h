// Vectors of the instruction set this file is compiled for, in the compiler's own vector types: arithmetic is plain
// operators, so the formulas of csrc/math take a vector for T. Included by row_norm_<instruction set>.cpp only,
// after its `#pragma GCC target` and TFN_VECTOR_BYTES.
//
// load(p, lanes) widens 16-bit floats; store(p, v, lanes) rounds to nearest even. `lanes` is Whole{}, or Part{n} for
// the last n < kLanes columns of a row: n elements are touched, the other lanes load as zero. No pointer needs to be
// aligned. A NaN stays a NaN. Where kPaired<T>, loops of elementwise work and of sums take 2 * kLanes elements as those
// at even places, Even{}, and those at odd ones, Odd{}: that takes no permutation, in or out.
#pragma once
#if TFN_VECTOR_BYTES > 16
#include <immintrin.h>
#endif
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "element.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class T, int BYTES = TFN_VECTOR_BYTES>
struct VectorOf {
  typedef T Type __attribute__((vector_size(BYTES)));
};
template <class A>
using Vector = typename VectorOf<A>::Type;
using Floats = Vector<float>;
using Doubles = Vector<double>;
using Ints = Vector<int32_t>;
using Longs = Vector<int64_t>;
using Words = Vector<uint32_t>;
using Shorts = typename VectorOf<uint16_t, TFN_VECTOR_BYTES / 2>::Type;
using HalfFloats = typename VectorOf<float, TFN_VECTOR_BYTES / 2>::Type;

template <class A>
constexpr int64_t kLanes = TFN_VECTOR_BYTES / int64_t(sizeof(A));

struct Whole {};
struct Part {
  int64_t count;
};
struct Even {};
struct Odd {};
// Whole{}, for a store past the caches. With shorter vectors than lines it is slower more often than not (measured).
struct Past {};
constexpr bool kStoresPast = TFN_VECTOR_BYTES == 64;
template <class T>
constexpr bool kPaired = TFN_VECTOR_BYTES >= 32 && std::is_same_v<T, BFloat16>;

template <class A>
TFN_INLINE Vector<A> splat(A value) {
  return value - Vector<A>{};
}

// Raw bits of a vector, all of them or the first `lanes`.
template <class V>
TFN_INLINE V load_bits(const void* p, Whole) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
TFN_INLINE void store_bits(void* p, V v, Whole) {
  std::memcpy(p, &v, sizeof(V));
}
#if TFN_VECTOR_BYTES == 64
template <class V>
TFN_INLINE V load_bits(const void* p, Part lanes) {
  constexpr int kElements = sizeof(V) == 32 ? 16 : sizeof(V) / sizeof(V{}[0]);
  const auto mask = uint32_t((1u << lanes.count) - 1);
  if constexpr (sizeof(V) == 32)
    return (V)_mm256_maskz_loadu_epi16(__mmask16(mask), p);
  else if constexpr (kElements == 16)
    return (V)_mm512_maskz_loadu_epi32(__mmask16(mask), p);
  else
    return (V)_mm512_maskz_loadu_epi64(__mmask8(mask), p);
}
template <class V>
TFN_INLINE void store_bits(void* p, V v, Past) {
  if constexpr (sizeof(V) == 32)
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
  else
    _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
}
template <class V>
TFN_INLINE void store_bits(void* p, V v, Part lanes) {
  constexpr int kElements = sizeof(V) == 32 ? 16 : sizeof(V) / sizeof(V{}[0]);
  const auto mask = uint32_t((1u << lanes.count) - 1);
  if constexpr (sizeof(V) == 32)
    _mm256_mask_storeu_epi16(p, __mmask16(mask), (__m256i)v);
  else if constexpr (kElements == 16)
    _mm512_mask_storeu_epi32(p, __mmask16(mask), (__m512i)v);
  else
    _mm512_mask_storeu_epi64(p, __mmask8(mask), (__m512i)v);
}
#elif TFN_VECTOR_BYTES == 32
// There are no masks for 16 bits, and stores under a mask are slow on some processors: pieces of 2 to 16 bytes, whose
// branches fall alike from run to run.
template <class V>
TFN_INLINE V load_bits(const void* p, Part lanes) {
  if constexpr (sizeof(V) == 16) {
    const auto* bytes = static_cast<const char*>(p) + (lanes.count & 4) * 2;
    uint64_t rest = 0, first = 0;
    uint32_t pair;
    uint16_t last;
    if (lanes.count & 1) {
      std::memcpy(&last, bytes + (lanes.count & 2) * 2, sizeof last);
      rest = last;
    }
    if (lanes.count & 2) {
      std::memcpy(&pair, bytes, sizeof pair);
      rest = rest << 32 | pair;
    }
    if (lanes.count & 4) {
      std::memcpy(&first, p, sizeof first);
      return (V)_mm_set_epi64x(int64_t(rest), int64_t(first));
    }
    return (V)_mm_set_epi64x(0, int64_t(rest));
  } else if constexpr (sizeof(V{}[0]) == 4) {
    const Ints index = {0, 1, 2, 3, 4, 5, 6, 7};
    return (V)_mm256_maskload_epi32(static_cast<const int*>(p), (__m256i)(index < int32_t(lanes.count)));
  } else {
    const Longs index = {0, 1, 2, 3};
    return (V)_mm256_maskload_epi64(static_cast<const long long*>(p), (__m256i)(index < lanes.count));
  }
}
template <class V>
TFN_INLINE void store_bits(void* p, V v, Part lanes) {
  auto* bytes = static_cast<char*>(p);
  const int64_t left = lanes.count * int64_t(sizeof(v[0]));
  __m128i piece;
  if constexpr (sizeof(V) == 16) {
    piece = (__m128i)v;
  } else {
    piece = _mm256_castsi256_si128((__m256i)v);
    if (left & 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), piece);
      bytes += 16;
      piece = _mm256_extracti128_si256((__m256i)v, 1);
    }
  }
  uint64_t bits = uint64_t(_mm_cvtsi128_si64(piece));
  if (left & 8) {
    std::memcpy(bytes, &bits, 8);
    bytes += 8;
    bits = uint64_t(_mm_extract_epi64(piece, 1));
  }
  if (left & 4) {
    std::memcpy(bytes, &bits, 4);
    bytes += 4;
    bits >>= 32;
  }
  if (left & 2) std::memcpy(bytes, &bits, 2);
}
#else
template <class V>
TFN_INLINE V load_bits(const void* p, Part lanes) {
  V v{};
  std::memcpy(&v, p, size_t(lanes.count) * sizeof(v[0]));
  return v;
}
template <class V>
TFN_INLINE void store_bits(void* p, V v, Part lanes) {
  std::memcpy(p, &v, size_t(lanes.count) * sizeof(v[0]));
}
#endif

// A bfloat16 is the upper half of a float. Rounding adds just under half a unit, plus the last bit kept; to a NaN,
// which is quiet after any arithmetic, nothing is added, so that it stays one.
#if TFN_VECTOR_BYTES == 64
TFN_INLINE Words round_to_upper_half(Floats v) {
  const __m512i bits = (__m512i)v, less = _mm512_set1_epi32(0x7fff), more = _mm512_set1_epi32(0x8000);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
  return (Words)_mm512_mask_add_epi32(bits, number, bits, _mm512_mask_blend_epi32(odd, less, more));
}
// One permutation of 16-bit words each way.
TFN_INLINE Floats widen(BFloat16, Shorts bits) {
  const __m512i to_upper = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4,
                                            0, 3, 0, 2, 0, 1, 0, 0, 0);
  return (Floats)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, to_upper, _mm512_castsi256_si512((__m256i)bits));
}
TFN_INLINE Shorts narrow(BFloat16, Floats v) {
  const __m512i from_upper = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21,
                                              19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return (Shorts)_mm512_castsi512_si256(
      _mm512_maskz_permutexvar_epi16(~0u, from_upper, (__m512i)round_to_upper_half(v)));
}
#else
TFN_INLINE Words round_to_upper_half(Floats v) {
  const Words bits = (Words)v;
  return bits + (v == v ? ((bits >> 16) & 1) + 0x7fff : Words{});
}
#if TFN_VECTOR_BYTES == 32
TFN_INLINE Floats widen(BFloat16, Shorts bits) {
  return (Floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
}
TFN_INLINE Shorts narrow(BFloat16, Floats v) {
  const __m256i upper = (__m256i)(round_to_upper_half(v) >> 16);
  return (Shorts)_mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
#else
TFN_INLINE Floats widen(BFloat16, Shorts bits) { return (Floats)(__builtin_convertvector(bits, Words) << 16); }
TFN_INLINE Shorts narrow(BFloat16, Floats v) { return __builtin_convertvector(round_to_upper_half(v) >> 16, Shorts); }
#endif
#endif

#if TFN_VECTOR_BYTES == 64
TFN_INLINE Floats widen(Half, Shorts bits) { return (Floats)_mm512_maskz_cvtph_ps(__mmask16(-1), (__m256i)bits); }
TFN_INLINE Shorts narrow(Half, Floats v) {
  return (Shorts)_mm512_maskz_cvtps_ph(__mmask16(-1), (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif TFN_VECTOR_BYTES == 32
TFN_INLINE Floats widen(Half, Shorts bits) { return (Floats)_mm256_cvtph_ps((__m128i)bits); }
TFN_INLINE Shorts narrow(Half, Floats v) {
  return (Shorts)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// Exponent and mantissa moved into a float's place are the value times 2^-112, subnormals included.
TFN_INLINE Floats widen(Half, Shorts bits) {
  const Words half = __builtin_convertvector(bits, Words);
  const Words magnitude = (half & 0x7fff) << 13;
  const Words finite = (Words)((Floats)magnitude * 0x1p112f);
  return (Floats)((magnitude >= 0x7c00 << 13 ? magnitude | 0x7f800000 : finite) | (half & 0x8000) << 16);
}
// Three ranges: too large (infinity; NaN apart), normal (round the mantissa in place; a carry may reach infinity,
// rightly), subnormal (adding 0.5 makes the addition round at half's last place).
TFN_INLINE Shorts narrow(Half, Floats v) {
  const Words bits = (Words)v, magnitude = bits & 0x7fffffff;
  const Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Words subnormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000;
  Words half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x47800000 ? Words{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? Words{} + 0x7e00 : half;
  return __builtin_convertvector(half | (bits >> 16 & 0x8000), Shorts);
}
#endif

#if TFN_VECTOR_BYTES == 64
TFN_INLINE Doubles low(Floats v) {
  return (Doubles)_mm512_maskz_cvtps_pd(__mmask8(-1), _mm512_castps512_ps256((__m512)v));
}
TFN_INLINE Doubles high(Floats v) {
  return (Doubles)_mm512_maskz_cvtps_pd(__mmask8(-1), _mm512_maskz_extractf32x8_ps(__mmask8(-1), (__m512)v, 1));
}
#elif TFN_VECTOR_BYTES == 32
TFN_INLINE Doubles low(Floats v) { return (Doubles)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)); }
TFN_INLINE Doubles high(Floats v) { return (Doubles)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1)); }
#else
TFN_INLINE Doubles low(Floats v) { return Doubles{double(v[0]), double(v[1])}; }
TFN_INLINE Doubles high(Floats v) { return Doubles{double(v[2]), double(v[3])}; }
#endif
TFN_INLINE Floats join(Doubles low, Doubles high) {
  const HalfFloats parts[2] = {__builtin_convertvector(low, HalfFloats), __builtin_convertvector(high, HalfFloats)};
  return load_bits<Floats>(parts, Whole{});
}

template <class LANES>
TFN_INLINE Floats load(const float* p, LANES lanes) {
  return load_bits<Floats>(p, lanes);
}
template <class LANES>
TFN_INLINE Doubles load(const double* p, LANES lanes) {
  return load_bits<Doubles>(p, lanes);
}
template <class LANES>
TFN_INLINE Floats load(const Half* p, LANES lanes) {
  return widen(Half(), load_bits<Shorts>(p, lanes));
}
template <class LANES>
TFN_INLINE Floats load(const BFloat16* p, LANES lanes) {
  return widen(BFloat16(), load_bits<Shorts>(p, lanes));
}

TFN_INLINE Floats load(const BFloat16* p, Even) { return (Floats)(load_bits<Words>(p, Whole{}) << 16); }
TFN_INLINE Floats load(const BFloat16* p, Odd) { return (Floats)(load_bits<Words>(p, Whole{}) & 0xffff0000u); }
// A number, or a plain NaN: one whose lower 16 bits are zero, so that rounding does not carry it into another number.
// Arithmetic on plain ones leaves plain ones, and what was widened from bfloat16 is plain.
template <class A>
TFN_INLINE A plain(A value) {
  return value == value ? value : A(__builtin_nan(""));
}
#if TFN_VECTOR_BYTES == 64
TFN_INLINE __m512i round_plain(Floats v) {
  const __m512i bits = (__m512i)v, sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  return _mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
}
#endif
// Both at once, of plain numbers. Their loads come before this store, too: those of the second half must not wait for a
// store that the processor takes to be to their address (it compares the lower twelve bits).
TFN_INLINE void store_pair([[maybe_unused]] bool past, BFloat16* p, Floats even, Floats odd) {
#if TFN_VECTOR_BYTES == 32
  // Up where the lower half, plus the last bit kept, is above 0x8000, for both at once.
  const __m256i of_even = (__m256i)even, of_odd = (__m256i)odd;
  const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(of_even, 16), of_odd, 0xaa);
  const __m256i lower = _mm256_blend_epi16(of_even, _mm256_slli_epi32(of_odd, 16), 0xaa);
  const __m256i one = _mm256_set1_epi16(1), sign = _mm256_set1_epi16(int16_t(0x8000));
  const __m256i beyond = _mm256_subs_epu16(_mm256_adds_epu16(lower, _mm256_and_si256(upper, one)), sign);
  store_bits(p, _mm256_add_epi16(upper, _mm256_min_epu16(beyond, one)), Whole{});
#elif TFN_VECTOR_BYTES == 64
  const __m512i low = _mm512_maskz_srli_epi32(__mmask16(-1), round_plain(even), 16);
  // low | (odd & 0xffff0000)
  const __m512i pair = _mm512_ternarylogic_epi32(low, round_plain(odd), _mm512_set1_epi32(int(0xffff0000)), 0xf8);
  if (past) return store_bits(p, pair, Past{});
  store_bits(p, pair, Whole{});
#else
  const Words low = round_to_upper_half(even) >> 16, high = round_to_upper_half(odd) & 0xffff0000u;
  store_bits(p, low | high, Whole{});
#endif
}

template <class LANES>
TFN_INLINE void store(float* p, Floats v, LANES lanes) {
  store_bits(p, v, lanes);
}
template <class LANES>
TFN_INLINE void store(double* p, Doubles v, LANES lanes) {
  store_bits(p, v, lanes);
}
template <class LANES>
TFN_INLINE void store(Half* p, Floats v, LANES lanes) {
  store_bits(p, narrow(Half(), v), lanes);
}
template <class LANES>
TFN_INLINE void store(BFloat16* p, Floats v, LANES lanes) {
  store_bits(p, narrow(BFloat16(), v), lanes);
}

// As store, or, where `past`, past the caches to memory: goes_past_caches in row_kernels.h. finish_stores comes before
// others may read it.
template <class T, class V, class LANES>
TFN_INLINE void store_past([[maybe_unused]] bool past, T* p, V v, LANES lanes) {
  if constexpr (kStoresPast && std::is_same_v<LANES, Whole>)
    if (past) return store(p, v, Past{});
  store(p, v, lanes);
}
TFN_INLINE void finish_stores([[maybe_unused]] bool past) {
#if TFN_VECTOR_BYTES == 64
  if (past) _mm_sfence();
#endif
}

// Lanes beyond the row's end become zero, whatever they held.
template <class V, class LANES>
TFN_INLINE V keep(V v, LANES) {
  return v;
}
TFN_INLINE Floats keep(Floats v, Part lanes) {
  Ints index;
  for (int i = 0; i < kLanes<float>; ++i) index[i] = i;
  return index < int32_t(lanes.count) ? v : Floats{};
}
TFN_INLINE Doubles keep(Doubles v, Part lanes) {
  Longs index;
  for (int i = 0; i < kLanes<double>; ++i) index[i] = i;
  return index < lanes.count ? v : Doubles{};
}

#if TFN_VECTOR_BYTES == 64
TFN_INLINE double total(Doubles v) {
  const __m256d four =
      _mm256_add_pd(_mm512_castpd512_pd256((__m512d)v), _mm512_maskz_extractf64x4_pd(__mmask8(-1), (__m512d)v, 1));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return two[0] + two[1];
}
#elif TFN_VECTOR_BYTES == 32
TFN_INLINE double total(Doubles v) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128((__m256d)v), _mm256_extractf128_pd((__m256d)v, 1));
  return two[0] + two[1];
}
#else
TFN_INLINE double total(Doubles v) { return v[0] + v[1]; }
#endif

// Keeps the compiler from fusing the product that v may be with an addition that follows: where one of two loops for
// the same numbers does it and the other does not, they differ in the last bit.
template <class V>
TFN_INLINE V rounded(V v) {
#if defined(__x86_64__) && TFN_VECTOR_BYTES == 64
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

// Brings the cache line of an element near, to read it or to write it. Any address will do. What is to be read comes
// into the second-level cache where vectors are long (measured: up to a quarter faster from memory on an AMD EPYC with
// AVX-512, where lines for the first level are few and what is worked on is driven out), else into the first.
constexpr int kFetchLevel = TFN_VECTOR_BYTES == 64 ? 2 : 3;
TFN_INLINE void fetch_to_read(const void* p, int64_t bytes_ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes_ahead)), 0,
                     kFetchLevel);
}
TFN_INLINE void fetch_to_write(const void* p, int64_t bytes_ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes_ahead)), 1);
}

// The same for all lines of COUNT elements.
template <int64_t COUNT, class T>
TFN_INLINE void fetch_run_to_read(const T* p, int64_t bytes_ahead) {
  for (int64_t b = 0; b < COUNT * int64_t(sizeof(T)); b += 64) fetch_to_read(p, bytes_ahead + b);
}
template <int64_t COUNT, class T>
TFN_INLINE void fetch_run_to_write(const T* p, int64_t bytes_ahead) {
  for (int64_t b = 0; b < COUNT * int64_t(sizeof(T)); b += 64) fetch_to_write(p, bytes_ahead + b);
}

// f(0), ... f(N - 1), written out, the index a constant: what it indexes can stay in registers.
template <int N, class F>
TFN_INLINE void repeat(F f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, N>());
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
