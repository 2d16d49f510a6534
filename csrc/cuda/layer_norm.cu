// LayerNorm on CUDA devices: the row kernels, with the mean subtracted (interface/layer_norm.h).
#include "../interface/layer_norm.h"
#include "row_launch.h"

namespace torchfastnorm::cuda {

constexpr bool centered = true;

void layer_norm_forward(const RowNormForward& arguments, Stream stream) {
  row_norm_forward<centered>(arguments, stream);
}

int64_t layer_norm_backward_workspace(const RowNormBackward& arguments) {
  return row_norm_backward_workspace<centered>(arguments);
}

void layer_norm_backward(const RowNormBackward& arguments, Stream stream) {
  row_norm_backward<centered>(arguments, stream);
}

}  // namespace torchfastnorm::cuda
