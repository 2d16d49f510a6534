// What LayerNorm (centered) and RMSNorm share: threads, chunks of rows, workspace (row_norm.cpp).
#pragma once
#include "../interface/row_norm.h"

namespace torchfastnorm::cpu {

void row_norm_forward(const RowNormForward&, bool centered);
int64_t row_norm_backward_workspace(const RowNormBackward&, bool centered);
void row_norm_backward(const RowNormBackward&, bool centered);

}  // namespace torchfastnorm::cpu
