// The only CUDA include of a kernel. One source, two builds:
//   nvcc                        real CUDA
//   g++ -DTORCHFASTNORM_SIM     the kernels run on the CPU (tests/native/cudasim.h), for tests only
// What a kernel may not write directly stands here behind a macro or a function: shared memory, launches, cache
// hints, access to global memory (counted in the CPU run, which proves the byte formulas).
#pragma once
#include <cstdint>
#include <cstring>

#if defined(TORCHFASTNORM_SIM)
#include "cudasim.h"

namespace torchfastnorm::cuda {

using cudasim::launch;
using cudasim::LaunchConfig;

}  // namespace torchfastnorm::cuda

// Shared memory of a block: SHARED(float, partial, [32]) and, its size given at launch, DYNAMIC_SHARED(uint4, row).
#define SHARED(type, name, ...)                                                      \
  auto& name = ::cudasim::static_shared<std::type_identity_t<type __VA_ARGS__>>([] { \
    static const char key = 0;                                                       \
    return static_cast<const void*>(&key);                                           \
  }())
#define DYNAMIC_SHARED(type, name) type* name = ::cudasim::dyn_shared<type>()

#else
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#define SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define DYNAMIC_SHARED(type, name)                                    \
  extern __shared__ __align__(16) unsigned char tfn_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(tfn_dynamic_shared)

namespace torchfastnorm::cuda {

struct LaunchConfig {
  dim3 grid, block;
  size_t smem = 0;
  unsigned cluster = 1;      // blocks per cluster, along x
  bool cooperative = false;  // the whole grid is co-resident: this_grid().sync() is allowed
  const char* name = "";
};

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("torchfastnorm: CUDA error in ") + what + ": " + cudaGetErrorString(error));
}

// A block has 48 KB of shared memory, static and dynamic together, unless its kernel is allowed more. A kernel's first
// launch on a device allows all there is: what a launch needs, allowed for it alone, another thread's launch of the
// same kernel could lower before it begins.
inline void allow_shared_memory(const void* function, const char* name) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), name);
  std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({function, device})) return;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, function), name);
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  const int dynamic = most - int(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic), name);
  allowed.insert({function, device});
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream, Arguments&&... arguments) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (config.smem > 0) allow_shared_memory(function, config.name);
  if (config.cluster > 8)
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), config.name);
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.smem;
  launch_config.stream = stream;
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = config.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  launch_config.attrs = attributes;
  launch_config.numAttrs = count;
  check(cudaLaunchKernelEx(&launch_config, kernel, std::forward<Arguments>(arguments)...), config.name);
}

}  // namespace torchfastnorm::cuda
#endif

namespace torchfastnorm::cuda {

// Every access of a kernel to global memory goes through these four, which the CPU run counts.

// Read a single time by the whole launch: must not displace in L1 what is read again.
template <class T>
__device__ __forceinline__ T load_once(const T* p) {
#if defined(TORCHFASTNORM_SIM)
  cudasim::count_load(p, sizeof(T));
  return *p;
#else
  if constexpr (sizeof(T) == 16) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return reinterpret_cast<const T&>(v);
  } else {
    return __ldg(p);
  }
#endif
}

// Read by several threads or rows, never written by this launch: weights, statistics, neighbouring 16 bytes.
template <class T>
__device__ __forceinline__ T load_cached(const T* p) {
#if defined(TORCHFASTNORM_SIM)
  cudasim::count_load(p, sizeof(T));
  return *p;
#else
  return __ldg(p);
#endif
}

// May have been written by this launch.
template <class T>
__device__ __forceinline__ T load_written(const T* p) {
#if defined(TORCHFASTNORM_SIM)
  cudasim::count_load(p, sizeof(T));
#endif
  return *p;
}

template <class T>
__device__ __forceinline__ void store(T* p, T value) {
#if defined(TORCHFASTNORM_SIM)
  cudasim::count_store(p, sizeof(T));
#endif
  *p = value;
}

// The thread-block cluster of this block. Devices before sm_90 have none: there, no kernel that uses it is launched.
struct Cluster {
#if defined(TORCHFASTNORM_SIM) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ unsigned rank() { return cooperative_groups::this_cluster().block_rank(); }
  static __device__ __forceinline__ unsigned blocks() { return cooperative_groups::this_cluster().num_blocks(); }
  static __device__ __forceinline__ void sync() { cooperative_groups::this_cluster().sync(); }
  template <class T>
  static __device__ __forceinline__ T* map_shared(T* p, unsigned rank) {  // the same variable in a peer's shared memory
    return cooperative_groups::this_cluster().map_shared_rank(p, rank);
  }
#else
  static __device__ __forceinline__ unsigned rank() { return 0; }
  static __device__ __forceinline__ unsigned blocks() { return 1; }
  static __device__ __forceinline__ void sync() {}
  template <class T>
  static __device__ __forceinline__ T* map_shared(T* p, unsigned) {
    return p;
  }
#endif
};

// `v`, of which the compiler knows nothing: what depends on it is computed again where it is needed. Where a number
// stays the same from turn to turn of a long loop, everything derived from it would be kept in registers, and spilled.
__device__ __forceinline__ int recomputed(int v) {
#if !defined(TORCHFASTNORM_SIM)
  asm volatile("" : "+r"(v));
#endif
  return v;
}

}  // namespace torchfastnorm::cuda
