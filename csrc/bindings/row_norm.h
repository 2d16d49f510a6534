// What the bindings of the row norms share: one inner pair of ops per norm, with the same signatures for all of them,
// their kernels, autograd and composite formulas. An op's own file adds its public schemas and nothing else.
//
//   <op>_forward(input, residual?, normalized_shape, weight?, bias?, eps, out_dtype?) -> (y, sum, mean, rstd)
//   <op>_backward(grad_y, grad_sum?, h, normalized_shape, weight?, mean?, rstd, eps, x_dtype, param_dtype, mask)
//       -> (grad_h, grad_x, grad_weight, grad_bias)
//
// h is what was normalised: input, or the sum. A result that the op has not, or that mask does not ask for, is
// undefined (None in Python). grad_x is asked for only where x_dtype differs from h's. The parameters' gradients come
// in param_dtype, the wider of weight's and bias's. The backward op is differentiable: it has a formula in ATen that
// recomputes the statistics from h, so derivatives of every order exist.
#pragma once
#include <c10/util/FunctionRef.h>

#include "common/backend.h"
#include "common/dispatch.h"

namespace torchfastnorm::bindings {

using Pair = std::tuple<Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Mask = std::array<bool, 4>;  // which of grad_h, grad_x, grad_weight, grad_bias

template <class Shape>
using ForwardSignature = Four(const Tensor& x, const OptTensor& residual, Shape shape, const OptTensor& weight,
                              const OptTensor& bias, double eps, OptType out_dtype);
template <class Shape>
using BackwardSignature = Four(const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h, Shape shape,
                               const OptTensor& weight, const OptTensor& mean, const Tensor& rstd, double eps,
                               at::ScalarType x_dtype, at::ScalarType param_dtype, Mask mask);

// The inner ops of one norm, found in the dispatcher.
struct RowNormCalls {
  c10::TypedOperatorHandle<ForwardSignature<c10::SymIntArrayRef>> forward;
  c10::TypedOperatorHandle<BackwardSignature<c10::SymIntArrayRef>> backward;
};

// What sets one row norm apart from another.
struct RowNormOp {
  const char* name;
  const char* add_name;  // of its form with a residual
  const char* node_name;
  bool centered;       // subtracts the mean
  bool rank_is_value;  // what torch.nn.functional raises for too few dimensions (checks.h)
  void (*Backend::*forward)(const RowNormForward&, Stream);
  int64_t (*Backend::*backward_workspace)(const RowNormBackward&);
  void (*Backend::*backward)(const RowNormBackward&, Stream);
  const RowNormCalls& (*calls)();
};

// The arguments of any of the public ops. Shape is at::IntArrayRef, or c10::SymIntArrayRef above the kernels.
template <class Shape>
struct RowNormInputs {
  const Tensor& x;
  const OptTensor& residual;
  Shape shape;
  const OptTensor& weight;
  const OptTensor& bias;
  double eps;
  OptType out_dtype;
};
inline const OptTensor absent = std::nullopt;

// row_norm.cpp: check, allocate, run the backend. Without statistics mean and rstd are neither computed nor returned.
Four row_norm_forward(const RowNormOp&, const RowNormInputs<at::IntArrayRef>&, bool statistics);
Four row_norm_backward(const RowNormOp&, const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h,
                       at::IntArrayRef shape, const OptTensor& weight, const OptTensor& mean, const Tensor& rstd,
                       at::ScalarType x_dtype, at::ScalarType param_dtype, Mask mask);

// row_norm_autograd.cpp: the Autograd kernels. `without_graph` calls the public op below autograd; (y, sum).
Pair row_norm_autograd(const RowNormOp&, const RowNormInputs<c10::SymIntArrayRef>&,
                       c10::function_ref<Pair()> without_graph);
Four row_norm_forward_autograd(const RowNormOp&, const RowNormInputs<c10::SymIntArrayRef>&);
Four row_norm_backward_autograd(const RowNormOp&, const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h,
                                c10::SymIntArrayRef shape, const OptTensor& weight, const OptTensor& mean,
                                const Tensor& rstd, double eps, at::ScalarType x_dtype, at::ScalarType param_dtype,
                                Mask mask);

// row_norm_composite.cpp: the formulas in ATen operations, for torch.func transforms and forward-mode AD.
Pair row_norm_composite(const RowNormOp&, const RowNormInputs<c10::SymIntArrayRef>&);
Four row_norm_backward_composite(const RowNormOp&, const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h,
                                 int64_t dims, const OptTensor& weight, double eps, at::ScalarType x_dtype,
                                 at::ScalarType param_dtype, Mask mask);
// The derivative of the backward formula: from the gradients of its four results (undefined: none) to those of
// grad_y, grad_sum, h and weight.
Four row_norm_double_backward(bool centered, const Four& grads, const Tensor& grad_y, const Tensor& h, int64_t dims,
                              const OptTensor& weight, double eps);

template <const RowNormOp& op>
const RowNormCalls& row_norm_calls() {
  static const RowNormCalls calls{find_op<ForwardSignature<c10::SymIntArrayRef>>(std::string(op.name) + "_forward"),
                                  find_op<BackwardSignature<c10::SymIntArrayRef>>(std::string(op.name) + "_backward")};
  return calls;
}

// Defines and registers <op>_forward and <op>_backward.
template <const RowNormOp& op>
void define_inner_ops(torch::Library& m) {
  const std::string forward = std::string(op.name) + "_forward", backward = std::string(op.name) + "_backward";
  m.def((forward + "(Tensor input, Tensor? residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
                   "float eps, ScalarType? out_dtype) -> (Tensor, Tensor, Tensor, Tensor)")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
  m.def((backward + "(Tensor grad_y, Tensor? grad_sum, Tensor h, SymInt[] normalized_shape, Tensor? weight, "
                    "Tensor? mean, Tensor rstd, float eps, ScalarType x_dtype, ScalarType param_dtype, bool[4] mask)"
                    " -> (Tensor, Tensor, Tensor, Tensor)")
            .c_str(),
        {at::Tag::pt2_compliant_tag});
  implement(
      m, forward.c_str(),
      +[](const Tensor& x, const OptTensor& residual, at::IntArrayRef shape, const OptTensor& weight,
          const OptTensor& bias, double eps,
          OptType out_dtype) { return row_norm_forward(op, {x, residual, shape, weight, bias, eps, out_dtype}, true); },
      +[](const Tensor& x, const OptTensor& residual, c10::SymIntArrayRef shape, const OptTensor& weight,
          const OptTensor& bias, double eps, OptType out_dtype) {
        return row_norm_forward_autograd(op, {x, residual, shape, weight, bias, eps, out_dtype});
      },
      +[](const Tensor&, const OptTensor&, c10::SymIntArrayRef, const OptTensor&, const OptTensor&, double,
          OptType) -> Four {
        TORCH_CHECK_NOT_IMPLEMENTED(false, op.name, "_forward() has no batching rule; call ", op.name, "() instead");
      });
  implement(
      m, backward.c_str(),
      +[](const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h, at::IntArrayRef shape,
          const OptTensor& weight, const OptTensor& mean, const Tensor& rstd, double, at::ScalarType x_dtype,
          at::ScalarType param_dtype, Mask mask) {
        return row_norm_backward(op, grad_y, grad_sum, h, shape, weight, mean, rstd, x_dtype, param_dtype, mask);
      },
      +[](const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h, c10::SymIntArrayRef shape,
          const OptTensor& weight, const OptTensor& mean, const Tensor& rstd, double eps, at::ScalarType x_dtype,
          at::ScalarType param_dtype, Mask mask) {
        return row_norm_backward_autograd(op, grad_y, grad_sum, h, shape, weight, mean, rstd, eps, x_dtype, param_dtype,
                                          mask);
      },
      +[](const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h, c10::SymIntArrayRef shape,
          const OptTensor& weight, const OptTensor&, const Tensor&, double eps, at::ScalarType x_dtype,
          at::ScalarType param_dtype, Mask mask) {
        return row_norm_backward_composite(op, grad_y, grad_sum, h, shape.size(), weight, eps, x_dtype, param_dtype,
                                           mask);
      });
}

}  // namespace torchfastnorm::bindings
