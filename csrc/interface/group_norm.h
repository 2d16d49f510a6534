// GroupNorm (Wu, He 2018, arXiv 1803.08494): Sets::Group, consecutive planes of one sample. The formulas stand in
// plane_norm.h; running_mean, running_var and batches are null, and batch_statistics is true.
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {
namespace cpu {
int64_t group_norm_forward_workspace(const PlaneNormForward&);
void group_norm_forward(const PlaneNormForward&, Stream);
int64_t group_norm_backward_workspace(const PlaneNormBackward&);
void group_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
int64_t group_norm_forward_workspace(const PlaneNormForward&);
void group_norm_forward(const PlaneNormForward&, Stream);
int64_t group_norm_backward_workspace(const PlaneNormBackward&);
void group_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
