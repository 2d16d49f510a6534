// SwitchNorm on CUDA devices: the plane kernels, over Sets::Instance (interface/switch_norm.h).
#include "../interface/switch_norm.h"
#include "plane_launch.h"

namespace torchfastnorm::cuda {

constexpr Sets sets = Sets::Instance;

int64_t switch_norm_forward_workspace(const PlaneNormForward& arguments) {
  return plane_norm_forward_workspace(arguments, sets);
}

void switch_norm_forward(const PlaneNormForward& arguments, Stream stream) {
  plane_norm_forward(arguments, sets, stream);
}

int64_t switch_norm_backward_workspace(const PlaneNormBackward& arguments) {
  return plane_norm_backward_workspace(arguments, sets);
}

void switch_norm_backward(const PlaneNormBackward& arguments, Stream stream) {
  plane_norm_backward(arguments, sets, stream);
}

}  // namespace torchfastnorm::cuda
