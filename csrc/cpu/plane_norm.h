// The entry points of the plane kernels on the CPU: plane_forward.cpp, plane_backward.cpp.
#pragma once
#include "../interface/plane_norm.h"

namespace torchfastnorm::cpu {

int64_t plane_norm_forward_workspace(const PlaneNormForward&, Sets);
void plane_norm_forward(const PlaneNormForward&, Sets, Stream);
int64_t plane_norm_backward_workspace(const PlaneNormBackward&, Sets);
void plane_norm_backward(const PlaneNormBackward&, Sets, Stream);

}  // namespace torchfastnorm::cpu
