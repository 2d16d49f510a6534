// LayerNorm on the CPU: the row kernels with a mean.
#include "../interface/layer_norm.h"

#include "row_norm.h"

namespace torchfastnorm::cpu {

void layer_norm_forward(const RowNormForward& a, Stream) { row_norm_forward(a, /*centered=*/true); }

int64_t layer_norm_backward_workspace(const RowNormBackward& a) {
  return row_norm_backward_workspace(a, /*centered=*/true);
}

void layer_norm_backward(const RowNormBackward& a, Stream) { row_norm_backward(a, /*centered=*/true); }

}  // namespace torchfastnorm::cpu
