// The kernels of whitening for any machine: 16-byte vectors (SSE2, NEON), half in integer arithmetic.
#include "whitening_kernels.h"

#define TFN_INSTRUCTION_SET default_set
#define TFN_VECTOR_BYTES 16
#include "whitening_moments.h"
#include "whitening_transform.h"

namespace torchfastnorm::cpu::default_set {
extern const WhiteningKernels whitening_kernels = {whitening_moments_kernels, whitening_transform_kernels};
}  // namespace torchfastnorm::cpu::default_set
