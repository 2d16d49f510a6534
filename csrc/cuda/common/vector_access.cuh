// Rows of any element type in global memory, read and written 16 bytes at a time at any alignment.
//
// Element j of a row belongs to vector j / size, whatever the row's address: which thread owns an element, and so
// the order of every sum, depends on the row's length alone (batch invariance). Where a row does not begin on a
// 16-byte boundary, a vector straddles two aligned granules:
//
//     granule      |      i       |     i + 1    |          m = address of the row % 16
//     row bytes    |...m..........|..m...........|
//     vector i         [== 16 - m ==|= m =]
//
// A load reads both granules (the second is the neighbour's first: an L1 hit) and shifts. A store takes the m bytes
// of the vector before from the lane below and writes one aligned granule. Only the granules at a row's ends, and at
// a warp's ends for stores, go element by element.
#pragma once
#include "../../interface/types.h"
#include "port.h"

namespace torchfastnorm::cuda {

// ---- element types

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr DType type_of = std::is_same_v<T, double>   ? DType::Double
                          : std::is_same_v<T, float>  ? DType::Float
                          : std::is_same_v<T, __half> ? DType::Half
                                                      : DType::BFloat16;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T, class A>
__device__ __forceinline__ T narrow(A v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(float(v));
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(float(v));
  } else {
    return T(v);
  }
}

// ---- N elements as loaded: 16 bytes of the tensor that sets the pace, less or more of the others

template <class T, int N = 16 / sizeof(T)>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Packed {
  static constexpr int size = N;
  static constexpr int words = N * sizeof(T) / 4;
  uint32_t word[words];
};

template <class T, int N, class A>
__device__ __forceinline__ void unpack(const Packed<T, N>& packed, A (&values)[N]) {
  // By words: an array of 16-bit elements would take a 32-bit register each.
  if constexpr (std::is_same_v<T, __nv_bfloat16> && N % 2 == 0) {  // the upper half of a float: one instruction each
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      values[2 * k] = A(__uint_as_float(packed.word[k] << 16));
      values[2 * k + 1] = A(__uint_as_float(packed.word[k] & 0xffff0000u));
    }
    return;
  }
  if constexpr (std::is_same_v<T, __half> && N % 2 == 0) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      __half2 pair;
      memcpy(&pair, &packed.word[k], 4);
      const float2 wide = __half22float2(pair);
      values[2 * k] = A(wide.x);
      values[2 * k + 1] = A(wide.y);
    }
    return;
  }
  T elements[N];
  memcpy(elements, packed.word, sizeof elements);
#pragma unroll
  for (int j = 0; j < N; ++j) values[j] = A(widen(elements[j]));
}

template <class T, int N, class A>
__device__ __forceinline__ Packed<T, N> pack(const A (&values)[N]) {
  Packed<T, N> packed;
  if constexpr (std::is_same_v<T, __half> && N % 2 == 0) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      const __half2 pair = __floats2half2_rn(float(values[2 * k]), float(values[2 * k + 1]));
      memcpy(&packed.word[k], &pair, 4);
    }
  } else if constexpr (std::is_same_v<T, __nv_bfloat16> && N % 2 == 0) {
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(float(values[2 * k]), float(values[2 * k + 1]));
      memcpy(&packed.word[k], &pair, 4);
    }
  } else {
    T elements[N];
#pragma unroll
    for (int j = 0; j < N; ++j) elements[j] = narrow<T>(values[j]);
    memcpy(packed.word, elements, sizeof elements);
  }
  return packed;
}

template <class T, int N>
__device__ __forceinline__ T element(const Packed<T, N>& packed, int j) {  // j must be known to the compiler
  T elements[N];
  memcpy(elements, packed.word, sizeof elements);
  return elements[j];
}

// The 16 bytes that begin `shift` bytes into (low, high); 0 < shift < 16. Selects, so that nothing is indexed at run
// time.
__device__ __forceinline__ void shift_bytes(const uint32_t (&low)[4], const uint32_t (&high)[4], unsigned shift,
                                            uint32_t (&out)[4]) {
  uint32_t w[8];
#pragma unroll
  for (int k = 0; k < 4; ++k) w[k] = low[k], w[k + 4] = high[k];
#pragma unroll
  for (int k = 0; k < 6; ++k) w[k] = shift & 8 ? w[k + 2] : w[k];
#pragma unroll
  for (int k = 0; k < 5; ++k) w[k] = shift & 4 ? w[k + 1] : w[k];
#pragma unroll
  for (int k = 0; k < 4; ++k) out[k] = uint32_t((uint64_t(w[k + 1]) << 32 | w[k]) >> (shift & 3) * 8);
}

// ---- vectors of one row

enum class Access { Once, Cached, Written };  // see port.h

template <Access ACCESS, class T>
__device__ __forceinline__ T load(const T* p) {
  if constexpr (ACCESS == Access::Once) return load_once(p);
  if constexpr (ACCESS == Access::Cached) return load_cached(p);
  return load_written(p);
}

template <Access ACCESS, class T>
__device__ __forceinline__ Packed<T> load_granule(const void* p) {
  const uint4 v = load<ACCESS>(static_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
}

// Elements [index * size, index * size + size) of a row; those at or beyond `cols` are zero.
// `aligned`: every row of the tensor begins on a 16-byte boundary (the same for the whole launch).
template <Access ACCESS, class T, class Index>
__device__ __forceinline__ Packed<T> load_vector(const T* row, Index index, Index cols, bool aligned) {
  constexpr int size = Packed<T>::size;
  const Index first = index * size;
  const unsigned misaligned = aligned ? 0 : reinterpret_cast<uintptr_t>(row) & 15;
  if (misaligned == 0 && first + size <= cols) return load_granule<ACCESS, T>(row + first);
  Packed<T> packed{};
  // Both granules lie wholly inside the row: neither its first nor its last few bytes.
  if (misaligned != 0 && first > 0 && first + 2 * size <= cols + Index(misaligned / sizeof(T))) {
    constexpr Access reread = ACCESS == Access::Once ? Access::Cached : ACCESS;
    const char* granule = reinterpret_cast<const char*>(row + first) - misaligned;
    const Packed<T> low = load_granule<reread, T>(granule), high = load_granule<reread, T>(granule + 16);
    shift_bytes(low.word, high.word, misaligned, packed.word);
  } else if (first < cols) {
    T elements[size];
    memcpy(elements, packed.word, 16);
#pragma unroll
    for (int j = 0; j < size; ++j)
      if (first + j < cols) elements[j] = load<ACCESS>(row + first + j);
    memcpy(packed.word, elements, 16);
  }
  return packed;
}

// Writes elements [index * size, ...) of a row. Consecutive lanes of a group of `lanes` (a power of two) hold
// consecutive vectors of one row. Where rows are not `aligned`, all 32 lanes must call together.
template <class T, class Index>
__device__ __forceinline__ void store_vector(T* row, Index index, Index cols, const Packed<T>& packed, bool aligned,
                                             unsigned lanes) {
  constexpr int size = Packed<T>::size;
  Index first = index * size;
  Packed<T> granule = packed;
  int from_below = 0;  // elements of the granule that belong to the vector below
  bool whole = true;
  if (!aligned) {
    const unsigned misaligned = reinterpret_cast<uintptr_t>(row) & 15;
    const unsigned lane = threadIdx.x % lanes;
    from_below = misaligned / sizeof(T);
    Packed<T> below;
#pragma unroll
    for (int k = 0; k < 4; ++k) below.word[k] = __shfl_up_sync(0xffffffffu, packed.word[k], 1, lanes);
    if (misaligned != 0) shift_bytes(below.word, packed.word, 16 - misaligned, granule.word);
    if (lane == lanes - 1) {  // nobody above takes this vector's last elements
#pragma unroll
      for (int j = 1; j < size; ++j)
        if (j >= size - from_below && first + j < cols) store(row + first + j, element(packed, j));
    }
    whole = lane > 0 || from_below == 0;
    first -= from_below;
    if (whole) from_below = 0;
  }
  if (whole && first >= 0 && first + size <= cols) {
    store(reinterpret_cast<uint4*>(row + first),
          make_uint4(granule.word[0], granule.word[1], granule.word[2], granule.word[3]));
  } else {
#pragma unroll
    for (int j = 0; j < size; ++j)
      if (j >= from_below && first + j < cols) store(row + first + j, element(granule, j));
  }
}

// ---- N elements of a row that are not 16 bytes, or of a type known only at run time

template <int BYTES>
using Word = std::conditional_t<BYTES >= 16, uint4, std::conditional_t<BYTES == 8, uint2, uint32_t>>;

template <Access ACCESS, class T, int N, class Index>
__device__ __forceinline__ Packed<T, N> load_elements(const T* row, Index index, Index cols) {
  using W = Word<N * sizeof(T)>;
  const Index first = index * N;
  Packed<T, N> packed{};
  if (first + N <= cols && reinterpret_cast<uintptr_t>(row + first) % sizeof(W) == 0) {
#pragma unroll
    for (int k = 0; k < int(sizeof packed / sizeof(W)); ++k) {
      const W word = load<ACCESS>(reinterpret_cast<const W*>(row + first) + k);
      memcpy(packed.word + k * sizeof(W) / 4, &word, sizeof word);
    }
  } else if (first < cols) {
    T elements[N];
    memcpy(elements, packed.word, sizeof elements);
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (first + j < cols) elements[j] = load<ACCESS>(row + first + j);
    memcpy(packed.word, elements, sizeof elements);
  }
  return packed;
}

template <class T, int N, class Index>
__device__ __forceinline__ void store_elements(T* row, Index index, Index cols, const Packed<T, N>& packed) {
  using W = Word<N * sizeof(T)>;
  const Index first = index * N;
  if (first + N <= cols && reinterpret_cast<uintptr_t>(row + first) % sizeof(W) == 0) {
#pragma unroll
    for (int k = 0; k < int(sizeof packed / sizeof(W)); ++k) {
      W word;
      memcpy(&word, packed.word + k * sizeof(W) / 4, sizeof word);
      store(reinterpret_cast<W*>(row + first) + k, word);
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (first + j < cols) store(row + first + j, element(packed, j));
  }
}

// Calls f with a null pointer of the type that `type` names.
template <class F>
__host__ __device__ __forceinline__ void with_type(DType type, F f) {
  switch (type) {
    case DType::Float:
      return f(static_cast<float*>(nullptr));
    case DType::Double:
      return f(static_cast<double*>(nullptr));
    case DType::Half:
      return f(static_cast<__half*>(nullptr));
    default:
      return f(static_cast<__nv_bfloat16*>(nullptr));
  }
}

template <Access ACCESS, int N, class A, class Index>
__device__ __forceinline__ void load_any(const void* row, DType type, Index index, Index cols, A (&values)[N]) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    unpack(load_elements<ACCESS, T, N>(static_cast<const T*>(row), index, cols), values);
  });
}

template <int N, class A, class Index>
__device__ __forceinline__ void store_any(void* row, DType type, Index index, Index cols, const A (&values)[N]) {
  with_type(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    store_elements(static_cast<T*>(row), index, cols, pack<T>(values));
  });
}

}  // namespace torchfastnorm::cuda
