// The plane kernels for AVX2 with FMA and F16C. The pragma stands for per-file compiler flags, which setuptools lacks.
// What is included before it (with the headers below it all include) stays compiled for any machine.
#include "../math/activation.h"
#include "plane_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC target("avx2,fma,f16c,prfchw")
#define TFN_INSTRUCTION_SET avx2
#define TFN_VECTOR_BYTES 32
#include "plane_backward.h"
#include "plane_forward.h"

namespace torchfastnorm::cpu::avx2 {
extern const PlaneKernels plane_kernels = {widen, plane_forward_kernels, plane_backward_kernels};
}  // namespace torchfastnorm::cpu::avx2
#endif
