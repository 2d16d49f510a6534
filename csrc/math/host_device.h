// The one portability macro of csrc/math: these functions run on the host and on the device.
#pragma once
#include <cmath>

#if defined(__CUDACC__)
#define TFN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TFN_HOST_DEVICE inline
#endif

namespace torchfastnorm {

// a / b. On a device within two units in the last place, without the branch for subnormal numbers that a correctly
// rounded division takes.
TFN_HOST_DEVICE float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
TFN_HOST_DEVICE double quotient(double a, double b) { return a / b; }

// 1 / sqrt(v), correctly rounded.
TFN_HOST_DEVICE float inverse_sqrt(float v) {
#if defined(__CUDA_ARCH__)
  return __frsqrt_rn(v);
#else
  return float(1.0 / std::sqrt(double(v)));
#endif
}
TFN_HOST_DEVICE double inverse_sqrt(double v) {
#if defined(__CUDA_ARCH__)
  return 1.0 / sqrt(v);
#else
  return 1.0 / std::sqrt(v);
#endif
}

}  // namespace torchfastnorm
