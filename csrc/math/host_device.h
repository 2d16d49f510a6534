// The one portability macro of csrc/math: these functions run on the host and on the device.
#pragma once
#if defined(__CUDACC__)
#define TFN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TFN_HOST_DEVICE inline
#endif
