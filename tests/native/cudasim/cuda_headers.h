// NVIDIA's headers that plain g++ can read: stream and vector types, half and bfloat16 with their host conversions
// (the same rounding as on the device). Everything else of the CUDA language that a kernel uses is in intrinsics.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#undef __grid_constant__
#define __grid_constant__

// The host compiler may decide for itself: forced, it would take twice the time.
#undef __forceinline__
#define __forceinline__ inline

#undef __shared__
#define __shared__ \
  _Pragma("GCC error \"__shared__ cannot run on the CPU: use SHARED(type, name, [n]) or DYNAMIC_SHARED(type, name)\"")
