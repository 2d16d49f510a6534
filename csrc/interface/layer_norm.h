// LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450) over the columns of a matrix, with an optional residual.
//
//   forward    mean = sum(h) / cols                       rstd = 1 / sqrt(sum((h - mean)^2) / cols + eps)
//              y    = (h - mean) * rstd * weight + bias
//   backward   x_hat = (h - mean) * rstd                  g = grad_y * weight
//              grad_h      = rstd * (g - mean(g) - x_hat * mean(g * x_hat))  (+ grad_sum)
//              grad_weight = sum over rows of grad_y * x_hat
//              grad_bias   = sum over rows of grad_y
#pragma once
#include "row_norm.h"

namespace torchfastnorm {
namespace cpu {
void layer_norm_forward(const RowNormForward&, Stream);
int64_t layer_norm_backward_workspace(const RowNormBackward&);
void layer_norm_backward(const RowNormBackward&, Stream);
}  // namespace cpu
namespace cuda {
void layer_norm_forward(const RowNormForward&, Stream);
int64_t layer_norm_backward_workspace(const RowNormBackward&);
void layer_norm_backward(const RowNormBackward&, Stream);
}  // namespace cuda
}  // namespace torchfastnorm
