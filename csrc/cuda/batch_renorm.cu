// BatchRenorm on CUDA devices: the plane kernels, over Sets::Batch (interface/batch_renorm.h).
#include "../interface/batch_renorm.h"
#include "plane_launch.h"

namespace torchfastnorm::cuda {

constexpr Sets sets = Sets::Batch;

int64_t batch_renorm_forward_workspace(const PlaneNormForward& arguments) {
  return plane_norm_forward_workspace(arguments, sets);
}

void batch_renorm_forward(const PlaneNormForward& arguments, Stream stream) {
  plane_norm_forward(arguments, sets, stream);
}

int64_t batch_renorm_backward_workspace(const PlaneNormBackward& arguments) {
  return plane_norm_backward_workspace(arguments, sets);
}

void batch_renorm_backward(const PlaneNormBackward& arguments, Stream stream) {
  plane_norm_backward(arguments, sets, stream);
}

}  // namespace torchfastnorm::cuda
