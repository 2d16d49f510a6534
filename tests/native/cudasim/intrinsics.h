// CUDA's built-in variables and device functions, as far as the kernels use them. Approximate functions (__fdividef,
// rsqrtf, __expf) are exact here: what their error does to a result, only a GPU shows.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

#include "sync.h"

#define threadIdx (::cudasim::g.thread_index)
#define blockIdx (::cudasim::g.block_index)
#define blockDim (::cudasim::g.block_dim)
#define gridDim (::cudasim::g.grid_dim)
#define warpSize 32

// ---- barriers and fences

inline void __syncthreads(cudasim::Location where = cudasim::Location::current()) {
  cudasim::arrive_and_wait(cudasim::g.current->block->barrier, "__syncthreads()", where, true);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, cudasim::Location where = cudasim::Location::current()) {
  cudasim::warp_operation(cudasim::WarpOp::sync, mask, 0, 0, "__syncwarp()", where);
}
inline void __threadfence() {
  cudasim::release(&cudasim::fence_edge);
  cudasim::acquire(&cudasim::fence_edge);
}
inline void __threadfence_block() { __threadfence(); }

// ---- warp operations

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cudasim::Location where = cudasim::Location::current()) {
  const unsigned lane = cudasim::g.current->lane;
  return cudasim::shuffle(mask, value, (lane & ~unsigned(width - 1)) | unsigned(source & (width - 1)), "__shfl_sync",
                          where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cudasim::Location where = cudasim::Location::current()) {
  const unsigned lane = cudasim::g.current->lane;
  unsigned source = lane ^ unsigned(lane_mask);
  if (source / unsigned(width) > lane / unsigned(width)) source = lane;
  return cudasim::shuffle(mask, value, source, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cudasim::Location where = cudasim::Location::current()) {
  const unsigned lane = cudasim::g.current->lane;
  unsigned source = lane + delta;
  if (source / unsigned(width) != lane / unsigned(width)) source = lane;
  return cudasim::shuffle(mask, value, source, "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cudasim::Location where = cudasim::Location::current()) {
  const unsigned lane = cudasim::g.current->lane;
  const unsigned source = lane % unsigned(width) < delta ? lane : lane - delta;
  return cudasim::shuffle(mask, value, source, "__shfl_up_sync", where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, cudasim::Location where = cudasim::Location::current()) {
  return unsigned(
      cudasim::warp_operation(cudasim::WarpOp::ballot, mask, predicate != 0, 0, "a vote of the warp", where));
}
inline int __any_sync(unsigned mask, int predicate, cudasim::Location where = cudasim::Location::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cudasim::Location where = cudasim::Location::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

// ---- cache hints

// clang-format off
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldca(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcv(const T* p) { return *p; }
template <class T> T __ldlu(const T* p) { return *p; }
template <class T> void __stcg(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stcs(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stwb(T* p, std::type_identity_t<T> value) { *p = value; }
template <class T> void __stwt(T* p, std::type_identity_t<T> value) { *p = value; }
// clang-format on

// ---- atomics: relaxed, as on the device; an order with other memory takes a __threadfence

namespace cudasim {
template <class T, class F>
T atomic_update(T* p, F f) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  auto* bits = reinterpret_cast<Bits*>(p);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
  do {
    next = std::bit_cast<Bits>(T(f(std::bit_cast<T>(old))));
  } while (!__atomic_compare_exchange_n(bits, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return std::bit_cast<T>(old);
}
}  // namespace cudasim

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return cudasim::atomic_update(p, [&](T old) { return old + value; });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return cudasim::atomic_update(p, [&](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return cudasim::atomic_update(p, [&](T old) { return old < value ? old : value; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return cudasim::atomic_update(p, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return cudasim::atomic_update(p, [&](T old) { return old == compare ? value : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return cudasim::atomic_update(p, [&](unsigned old) { return old >= limit ? 0u : old + 1; });
}

// ---- arithmetic

// clang-format off
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __expf(float a) { return std::exp(a); }
inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return std::bit_cast<float>(u); }
inline int __popc(unsigned u) { return std::popcount(u); }
inline int __ffs(int i) { return i ? std::countr_zero(unsigned(i)) + 1 : 0; }
inline int __clz(int i) { return std::countl_zero(unsigned(i)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
// clang-format on

using std::fma;
using std::fmaf;
using std::max;
using std::min;
using std::sqrt;
