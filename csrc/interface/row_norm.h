// What LayerNorm and RMSNorm over the last dimensions hand to a backend: a (rows, cols) matrix whose rows are
// normalised one by one. The formulas stand in layer_norm.h and rms_norm.h; fields that an op does not have are null.
//
// A pointer's type is the DType named beside it. "stat" is accumulator_of(type of h).
// rows and cols may be zero; grad_weight and grad_bias are written all the same (with zeros).
// No pointer needs to be aligned beyond its element. Outputs never overlap inputs or each other.
#pragma once
#include "types.h"

namespace torchfastnorm {

// h = x, or x + residual rounded to residual_type (and stored in `sum`); then y = norm(h).
struct RowNormForward {
  const void* x;         // (rows, cols) x_type, rows placed by x_layout
  const void* residual;  // null, or (rows, cols) residual_type, rows placed by residual_layout
  const void* weight;    // null (ones), or (cols) param_type
  const void* bias;      // null (zeros), or (cols) param_type
  void* y;               // (rows, cols) y_type, contiguous
  void* sum;             // (rows, cols) residual_type, contiguous; null exactly when residual is
  void* mean;            // (rows) stat, or null: not wanted, or the op has none
  void* rstd;            // (rows) stat, or null: not wanted
  int64_t rows, cols;
  RowLayout x_layout, residual_layout;
  double eps;
  DType x_type, residual_type, param_type, y_type;
  PlanChoice choice;
};

// g = grad_y * weight; grad_h as the op's header says, plus grad_sum where there is one.
struct RowNormBackward {
  const void* grad_y;    // (rows, cols) y_type, rows placed by grad_y_layout
  const void* grad_sum;  // null, or (rows, cols) h_type, rows placed by grad_sum_layout: gradient of forward's `sum`
  const void* h;         // (rows, cols) h_type, rows placed by h_layout: what was normalised (x, or the sum)
  const void* weight;    // null, or (cols) param_type
  const void* mean;      // (rows) stat; null for an op without it
  const void* rstd;      // (rows) stat
  void* grad_h;          // (rows, cols) h_type, contiguous; null: not wanted
  void* grad_x;          // (rows, cols) x_type, contiguous: grad_h once more, rounded from the same number;
                         // null unless x_type differs from h_type and it is wanted
  void* grad_weight;     // (cols) param_type; null: not wanted
  void* grad_bias;       // (cols) param_type; null: not wanted, or the op has none
  void* workspace;       // <op>_backward_workspace(these arguments) bytes, aligned to 16; need not be cleared
  int64_t rows, cols;
  RowLayout grad_y_layout, grad_sum_layout, h_layout;
  DType y_type, h_type, x_type, param_type;
  PlanChoice choice;
};

}  // namespace torchfastnorm
