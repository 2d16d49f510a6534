// GroupNorm on CUDA devices: the plane kernels, over Sets::Group (interface/group_norm.h).
#include "../interface/group_norm.h"
#include "plane_launch.h"

namespace torchfastnorm::cuda {

constexpr Sets sets = Sets::Group;

int64_t group_norm_forward_workspace(const PlaneNormForward& arguments) {
  return plane_norm_forward_workspace(arguments, sets);
}

void group_norm_forward(const PlaneNormForward& arguments, Stream stream) {
  plane_norm_forward(arguments, sets, stream);
}

int64_t group_norm_backward_workspace(const PlaneNormBackward& arguments) {
  return plane_norm_backward_workspace(arguments, sets);
}

void group_norm_backward(const PlaneNormBackward& arguments, Stream stream) {
  plane_norm_backward(arguments, sets, stream);
}

}  // namespace torchfastnorm::cuda
