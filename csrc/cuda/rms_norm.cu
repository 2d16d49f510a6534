// RMSNorm on CUDA devices: the row kernels, with no mean subtracted (interface/rms_norm.h).
#include "../interface/rms_norm.h"
#include "row_launch.h"

namespace torchfastnorm::cuda {

constexpr bool centered = false;

void rms_norm_forward(const RowNormForward& arguments, Stream stream) { row_norm_forward<centered>(arguments, stream); }

int64_t rms_norm_backward_workspace(const RowNormBackward& arguments) {
  return row_norm_backward_workspace<centered>(arguments);
}

void rms_norm_backward(const RowNormBackward& arguments, Stream stream) {
  row_norm_backward<centered>(arguments, stream);
}

}  // namespace torchfastnorm::cuda
