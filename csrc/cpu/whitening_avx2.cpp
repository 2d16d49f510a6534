// The kernels of whitening for AVX2 with FMA and F16C. The pragma stands for per-file compiler flags, which setuptools
// lacks. What is included before it (with the headers below it all include) stays compiled for any machine.
#include "whitening_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC target("avx2,fma,f16c,prfchw")
#define TFN_INSTRUCTION_SET avx2
#define TFN_VECTOR_BYTES 32
#include "whitening_moments.h"
#include "whitening_transform.h"

namespace torchfastnorm::cpu::avx2 {
extern const WhiteningKernels whitening_kernels = {whitening_moments_kernels, whitening_transform_kernels};
}  // namespace torchfastnorm::cpu::avx2
#endif
