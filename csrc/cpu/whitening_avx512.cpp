// The kernels of whitening for AVX-512 (F, BW, VL, DQ). The pragma stands for per-file compiler flags, which setuptools
// lacks. What is included before it (with the headers below it all include) stays compiled for any machine.
#include "whitening_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own undefined vectors for a mistake (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prfchw")
#define TFN_INSTRUCTION_SET avx512
#define TFN_VECTOR_BYTES 64
#include "whitening_moments.h"
#include "whitening_transform.h"

namespace torchfastnorm::cpu::avx512 {
extern const WhiteningKernels whitening_kernels = {whitening_moments_kernels, whitening_transform_kernels};
}  // namespace torchfastnorm::cpu::avx512
#endif
