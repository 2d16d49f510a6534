// BatchRenorm (Ioffe 2017, arXiv 1702.03275): BatchNorm with `renorm` other than None. The formulas stand in
// plane_norm.h and math/renorm.h.
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {
namespace cpu {
int64_t batch_renorm_forward_workspace(const PlaneNormForward&);
void batch_renorm_forward(const PlaneNormForward&, Stream);
int64_t batch_renorm_backward_workspace(const PlaneNormBackward&);
void batch_renorm_backward(const PlaneNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
int64_t batch_renorm_forward_workspace(const PlaneNormForward&);
void batch_renorm_forward(const PlaneNormForward&, Stream);
int64_t batch_renorm_backward_workspace(const PlaneNormBackward&);
void batch_renorm_backward(const PlaneNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
