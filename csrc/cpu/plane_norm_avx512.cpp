// The plane kernels for AVX-512 (F, BW, VL, DQ) and BMI2. The pragma stands for per-file compiler flags, which
// setuptools lacks. What is included before it (with the headers below it all include) stays compiled for any machine.
#include "../math/activation.h"
#include "plane_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own undefined vectors for a mistake (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2,prfchw")
#define TFN_INSTRUCTION_SET avx512
#define TFN_VECTOR_BYTES 64
#include "plane_backward.h"
#include "plane_forward.h"

namespace torchfastnorm::cpu::avx512 {
extern const PlaneKernels plane_kernels = {widen, plane_forward_kernels, plane_backward_kernels};
}  // namespace torchfastnorm::cpu::avx512
#endif
