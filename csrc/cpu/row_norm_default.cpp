// The row kernels for any machine: 16-byte vectors (SSE2, NEON), half in integer arithmetic.
#include "../math/row_layout.h"
#include "row_kernels.h"

// How vectors of four doubles (row_short.h) are returned does not matter: their functions are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#define TFN_INSTRUCTION_SET default_set
#define TFN_VECTOR_BYTES 16
#include "row_backward.h"
#include "row_forward.h"

namespace torchfastnorm::cpu::default_set {
extern const RowKernels row_kernels = {"DEFAULT", forward_kernels, backward_kernels};
}  // namespace torchfastnorm::cpu::default_set
