// BatchNorm (Ioffe, Szegedy 2015, arXiv 1502.03167): Sets::Batch, the planes of one channel over all samples. The
// formulas stand in plane_norm.h.
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {
namespace cpu {
int64_t batch_norm_forward_workspace(const PlaneNormForward&);
void batch_norm_forward(const PlaneNormForward&, Stream);
int64_t batch_norm_backward_workspace(const PlaneNormBackward&);
void batch_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
int64_t batch_norm_forward_workspace(const PlaneNormForward&);
void batch_norm_forward(const PlaneNormForward&, Stream);
int64_t batch_norm_backward_workspace(const PlaneNormBackward&);
void batch_norm_backward(const PlaneNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
