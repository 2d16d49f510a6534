// RMSNorm (Zhang, Sennrich 2019, arXiv 1910.07467) over the columns of a matrix, with an optional residual.
// `bias`, `mean` and `grad_bias` are null.
//
//   forward    rstd = 1 / sqrt(sum(h^2) / cols + eps)     y = h * rstd * weight
//   backward   x_hat = h * rstd                           g = grad_y * weight
//              grad_h      = rstd * (g - x_hat * mean(g * x_hat))  (+ grad_sum)
//              grad_weight = sum over rows of grad_y * x_hat
#pragma once
#include "row_norm.h"

namespace torchfastnorm {
namespace cpu {
void rms_norm_forward(const RowNormForward&, Stream);
int64_t rms_norm_backward_workspace(const RowNormBackward&);
void rms_norm_backward(const RowNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
void rms_norm_forward(const RowNormForward&, Stream);
int64_t rms_norm_backward_workspace(const RowNormBackward&);
void rms_norm_backward(const RowNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
