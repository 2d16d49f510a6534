// The plane kernels for any machine: 16-byte vectors (SSE2, NEON), half in integer arithmetic.
#include "../math/activation.h"
#include "plane_kernels.h"

#define TFN_INSTRUCTION_SET default_set
#define TFN_VECTOR_BYTES 16
#include "plane_backward.h"
#include "plane_forward.h"

namespace torchfastnorm::cpu::default_set {
extern const PlaneKernels plane_kernels = {widen, plane_forward_kernels, plane_backward_kernels};
}  // namespace torchfastnorm::cpu::default_set
