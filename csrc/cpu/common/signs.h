// Signs of a vector's lanes as the bits of interface/plane_signs.h, and back. `signs` is a run's first byte, `c` the
// element of the run that lane 0 is (Even{}: the first of lanes at even places, Odd{} the same).
#pragma once
#include "vector.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class T>
constexpr int64_t kSigned = 16 / int64_t(sizeof(T));  // elements of a byte

// Bit of element i, counted from a byte's first one.
template <class T>
constexpr uint32_t sign_bit(int64_t i) {
  return uint32_t(1) << (i / kSigned<T> * 8 + i % kSigned<T>);
}
template <class T, class A = Accumulator<T>>
using SignWords = std::conditional_t<std::is_same_v<A, float>, Ints, Longs>;

// step 1: lanes side by side; 2: at even places, or at odd ones if `first` is 1.
template <class T, int64_t STEP, int64_t FIRST>
TFN_INLINE SignWords<T> sign_bits() {
  SignWords<T> bits;
  for (int64_t i = 0; i < kLanes<Accumulator<T>>; ++i) bits[i] = int32_t(sign_bit<T>(FIRST + STEP * i));
  return bits;
}

// v where the sign is positive, else `other`.
template <class T, class LANES, class A = Accumulator<T>>
TFN_INLINE Vector<A> where_positive(const uint8_t* signs, int64_t c, Vector<A> v, Vector<A> other, LANES) {
  using Words = SignWords<T>;
  constexpr bool even = std::is_same_v<LANES, Even>, odd = std::is_same_v<LANES, Odd>;
  constexpr int64_t elements = kLanes<A> * (even || odd ? 2 : 1);
  uint32_t word = 0;
  std::memcpy(&word, signs + c / kSigned<T>, size_t(elements < kSigned<T> ? 1 : elements / kSigned<T>));
  if constexpr (elements < kSigned<T>) word >>= c % kSigned<T>;
  const Words bits = sign_bits<T, even || odd ? 2 : 1, odd>(), all = Words{} + int32_t(word);
  return (all & bits) != 0 ? v : other;
}

template <class A>
TFN_INLINE uint32_t positive_lanes(Vector<A> v) {
#if TFN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<A, float>)
    return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
  else
    return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_GT_OQ);
#elif TFN_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<A, float>)
    return uint32_t(_mm256_movemask_ps((__m256)(v > 0)));
  else
    return uint32_t(_mm256_movemask_pd((__m256d)(v > 0)));
#else
  uint32_t lanes = 0;
  for (int64_t i = 0; i < kLanes<A>; ++i) lanes |= v[i] > 0 ? uint32_t(1) << i : 0;
  return lanes;
#endif
}
// `lanes` bits side by side, `of_byte` of them into each byte.
template <int64_t OF_BYTE>
TFN_INLINE uint32_t spread(uint32_t lanes) {
  if constexpr (OF_BYTE == 4) {
    lanes = (lanes | lanes << 8) & 0x00ff00ff;
    lanes = (lanes | lanes << 4) & 0x0f0f0f0f;
  } else if constexpr (OF_BYTE == 2) {
    lanes = (lanes | lanes << 12) & 0x000f000f;
    lanes = (lanes | lanes << 6) & 0x03030303;
  }
  return lanes;
}

template <class T, class LANES, class A = Accumulator<T>>
TFN_INLINE void store_signs(uint8_t* signs, int64_t c, Vector<A> v, LANES lanes) {
  constexpr int64_t of_byte = kSigned<T>;
  const uint32_t word = spread<of_byte>(positive_lanes<A>(v));
  uint8_t* const to = signs + c / of_byte;
  if constexpr (kLanes<A> < of_byte) {  // a part of a byte, from its lowest bits on
    *to = uint8_t((c % of_byte == 0 ? 0 : *to) | word << (c % of_byte));
  } else if constexpr (std::is_same_v<LANES, Whole>) {
    std::memcpy(to, &word, size_t(kLanes<A> / of_byte));
  } else {  // the next byte is another run's
    for (int64_t i = 0; i * of_byte < lanes.count; ++i) to[i] = uint8_t(word >> 8 * i);
  }
}
// Of bfloat16, see kPaired.
#if TFN_VECTOR_BYTES == 32
TFN_INLINE void store_sign_pair(uint8_t* signs, int64_t c, Floats even, Floats odd) {
  const __m256i positive = _mm256_blend_epi16((__m256i)(even > 0), (__m256i)(odd > 0), 0xaa);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(positive), _mm256_extracti128_si256(positive, 1));
  const auto word = uint16_t(_mm_movemask_epi8(bytes));
  std::memcpy(signs + c / kSigned<BFloat16>, &word, sizeof word);
}
#elif TFN_VECTOR_BYTES == 64
TFN_INLINE void store_sign_pair(uint8_t* signs, int64_t c, Floats even, Floats odd) {
  const uint32_t word =
      _pdep_u32(positive_lanes<float>(even), 0x55555555u) | _pdep_u32(positive_lanes<float>(odd), 0xaaaaaaaau);
  std::memcpy(signs + c / kSigned<BFloat16>, &word, sizeof word);
}
#endif

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
