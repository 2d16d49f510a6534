// InstanceNorm (Ulyanov, Vedaldi, Lempitsky 2016, arXiv 1607.08022): Sets::Instance, every plane by itself. The
// formulas stand in plane_norm.h; batch_statistics is true (running ones: a batch_norm), batches is null.
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {
namespace cpu {
int64_t instance_norm_forward_workspace(const PlaneNormForward&);
void instance_norm_forward(const PlaneNormForward&, Stream);
int64_t instance_norm_backward_workspace(const PlaneNormBackward&);
void instance_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
int64_t instance_norm_forward_workspace(const PlaneNormForward&);
void instance_norm_forward(const PlaneNormForward&, Stream);
int64_t instance_norm_backward_workspace(const PlaneNormBackward&);
void instance_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
