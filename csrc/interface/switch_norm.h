// SwitchNorm (Luo et al. 2018, arXiv 1806.10779): InstanceNorm with `mix.terms`. The formulas stand in plane_norm.h and
// math/switch_norm.h. No mask; not with an empty input.
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {
namespace cpu {
int64_t switch_norm_forward_workspace(const PlaneNormForward&);
void switch_norm_forward(const PlaneNormForward&, Stream);
int64_t switch_norm_backward_workspace(const PlaneNormBackward&);
void switch_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
int64_t switch_norm_forward_workspace(const PlaneNormForward&);
void switch_norm_forward(const PlaneNormForward&, Stream);
int64_t switch_norm_backward_workspace(const PlaneNormBackward&);
void switch_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
