// RMSNorm on the CPU: the row kernels without a mean.
#include "../interface/rms_norm.h"

#include "row_norm.h"

namespace torchfastnorm::cpu {

void rms_norm_forward(const RowNormForward& a, Stream) { row_norm_forward(a, /*centered=*/false); }

int64_t rms_norm_backward_workspace(const RowNormBackward& a) {
  return row_norm_backward_workspace(a, /*centered=*/false);
}

void rms_norm_backward(const RowNormBackward& a, Stream) { row_norm_backward(a, /*centered=*/false); }

}  // namespace torchfastnorm::cpu
