// Launching the plane kernels: plane_forward.cu and plane_backward.cu for the thin files of the ops, and what they
// share.
#pragma once
#include "../interface/plane_norm.h"

namespace torchfastnorm::cuda {

int64_t plane_norm_forward_workspace(const PlaneNormForward&, Sets);
void plane_norm_forward(const PlaneNormForward&, Sets, Stream);
int64_t plane_norm_backward_workspace(const PlaneNormBackward&, Sets);
void plane_norm_backward(const PlaneNormBackward&, Sets, Stream);

}  // namespace torchfastnorm::cuda
