// What the bindings of BatchNorm, BatchRenorm, GroupNorm, InstanceNorm and SwitchNorm share: one pair of inner ops for
// all, their kernels, autograd and composite formulas. An op's own file adds its public schema and nothing else.
//
//   plane_norm_forward(input, running_mean?, running_var?, num_batches_tracked?, weight?, bias?, residual?, mask?,
//                      sets, groups, batch_statistics, momentum?, eps, activation, renorm, bounds, mean_weight?,
//                      var_weight?, moving_average) -> (y, mean, rstd, signs?)
//   plane_norm_backward(grad_y, input, mean, rstd, weight?, bias?, residual?, mask?, signs?, sets, groups,
//                       batch_statistics, eps, activation, renorm, mean_weight?, var_weight?, param_dtype, wanted)
//                       -> (grad_input, grad_residual, grad_weight, grad_bias, grad_mean_weight, grad_var_weight)
//
// `sets` is the number of a Sets; mean and rstd are flat, one element for each set (with renorm rstd is (6, sets), of
// interface/plane_norm.h); `renorm` names a Renorm, `bounds` are its RenormBounds. mean_weight and var_weight, the
// logits of a switchable norm, make both longer (interface/plane_norm.h). Of a ReLU with a residual (interface/
// plane_signs.h) backward takes the signs instead of the residual. The parameters' gradients come in
// param_dtype, the wider of weight's and bias's; a gradient that `wanted` does not ask for is undefined.
//
// Calls that write running statistics go to ops of their own, <op>_with_update, whose schemas say what is written: the
// others are functions, so that torch.compile and torch.export do not take an evaluation for a mutation. Both have one
// signature and one implementation.
#pragma once
#include <c10/util/FunctionRef.h>

#include <string_view>

#include "common/backend.h"
#include "common/dispatch.h"
#include "common/fast_entry.h"

namespace torchfastnorm::bindings {

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // y, mean, rstd, signs
// Of input, residual, weight, bias, mean_weight, var_weight.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Wanted = std::array<bool, 6>;

struct PlaneNormOp {
  const char* name;
  const char* node_name;
  int64_t (*Backend::*forward_workspace)(const PlaneNormForward&);
  void (*Backend::*forward)(const PlaneNormForward&, Stream);
  int64_t (*Backend::*backward_workspace)(const PlaneNormBackward&);
  void (*Backend::*backward)(const PlaneNormBackward&, Stream);
};
const PlaneNormOp& plane_norm_op(Sets, bool renorms, bool switchable);

inline const OptTensor none = std::nullopt;

// The arguments of any of the public ops.
struct PlaneNormInputs {
  const Tensor& x;
  const OptTensor& running_mean = none;
  const OptTensor& running_var = none;
  const OptTensor& batches = none;  // num_batches_tracked
  const OptTensor& weight = none;
  const OptTensor& bias = none;
  const OptTensor& residual = none;
  const OptTensor& mask = none;
  Sets sets;
  int64_t groups = 1;
  bool batch_statistics = true;
  std::optional<double> momentum = 0.;  // nothing: cumulative average, which needs `batches`
  double eps;
  std::string_view activation;
  std::string_view renorm = "none";
  RenormBounds bounds = {};
  const OptTensor& mean_weight = none;
  const OptTensor& var_weight = none;
  bool moving_average = true;
  const OptTensor& signs = none;  // of backward

  bool switchable() const { return has(mean_weight); }
  bool corrects() const { return renorms() && batch_statistics; }
  bool renorms() const { return renorm != "none"; }
  const PlaneNormOp& op() const { return plane_norm_op(sets_in_kernel(), renorms(), switchable()); }
  const char* name() const { return plane_norm_op(sets, renorms(), switchable()).name; }
  bool updates() const { return batch_statistics && (has(running_mean) || has(batches)); }
  // Running statistics are one pair for all samples: what they normalise is a batch norm.
  Sets sets_in_kernel() const { return batch_statistics || switchable() ? sets : Sets::Batch; }
};

// The inner ops, found in the dispatcher.
using ForwardSignature = Results(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                                 const OptTensor& batches, const OptTensor& weight, const OptTensor& bias,
                                 const OptTensor& residual, const OptTensor& mask, int64_t sets, int64_t groups,
                                 bool batch_statistics, std::optional<double> momentum, double eps,
                                 std::string_view activation, std::string_view renorm, at::ArrayRef<double> bounds,
                                 const OptTensor& mean_weight, const OptTensor& var_weight, bool moving_average);
using BackwardSignature = Gradients(const Tensor& grad_y, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                    const OptTensor& weight, const OptTensor& bias, const OptTensor& residual,
                                    const OptTensor& mask, const OptTensor& signs, int64_t sets, int64_t groups,
                                    bool batch_statistics, double eps, std::string_view activation,
                                    std::string_view renorm, const OptTensor& mean_weight, const OptTensor& var_weight,
                                    at::ScalarType param_dtype, Wanted wanted);
const c10::TypedOperatorHandle<ForwardSignature>& plane_norm_forward_op(bool updates);
const c10::TypedOperatorHandle<BackwardSignature>& plane_norm_backward_op();

// plane_norm_checks.cpp. The first are those that the backward op shares.
void check_tensors(const PlaneNormInputs&);
void check_inputs(const PlaneNormInputs&);
void check_writes_nothing(const PlaneNormInputs&);  // for the ops whose schemas say so
Activation activation_named(const char* op, std::string_view name);
Renorm renorm_named(const char* op, std::string_view name);
std::array<double, 6> list_of(const RenormBounds&);
RenormBounds bounds_of(const char* op, at::ArrayRef<double> list);
Sets sets_named(int64_t number);
uint8_t switch_terms_of(const PlaneNormInputs&);  // SwitchTerms

// plane_norm.cpp: check, allocate, run the backend. Without statistics mean, rstd and signs are neither computed nor
// returned.
Results plane_norm_forward(const PlaneNormInputs&, bool statistics);
Gradients plane_norm_backward(const PlaneNormInputs&, const Tensor& grad_y, const Tensor& mean, const Tensor& rstd,
                              at::ScalarType param_dtype, Wanted wanted);

// plane_norm_autograd.cpp: the Autograd kernels. `without_graph` calls the public op below autograd.
Tensor plane_norm_autograd(const PlaneNormInputs&, c10::function_ref<Tensor()> without_graph);
Results plane_norm_forward_autograd(const PlaneNormInputs&);
Gradients plane_norm_backward_autograd(const PlaneNormInputs&, const Tensor& grad_y, const Tensor& mean,
                                       const Tensor& rstd, at::ScalarType param_dtype, Wanted wanted);

// plane_norm_composite.cpp: the formulas in ATen operations, for torch.func transforms, forward-mode AD and, because
// torch differentiates them again, for every further derivative.
Tensor plane_norm_composite(const PlaneNormInputs&);
Gradients plane_norm_backward_composite(const PlaneNormInputs&, const Tensor& grad_y, const Tensor& mean,
                                        const Tensor& rstd, at::ScalarType param_dtype, Wanted wanted);

// The two dispatcher ops of a public op and all of their kernels. Op has `name`, its Signature, and inputs(), which
// takes the same arguments.
template <class Op, class Signature = typename Op::Signature>
struct PlaneNormKernels;

template <class Op, class... A>
struct PlaneNormKernels<Op, Tensor(A...)> {
  static Tensor call(A... a) {
    if (!Op::inputs(a...).updates()) {
      static const auto plain = find_op<Tensor(A...)>(Op::name);
      return plain.call(a...);
    }
    static const auto with_update = find_op<Tensor(A...)>(std::string(Op::name) + "_with_update");
    return with_update.call(a...);
  }
  static Tensor kernel(A... a) { return std::get<0>(plane_norm_forward(Op::inputs(a...), false)); }
  static Tensor autograd(A... a) {
    return plane_norm_autograd(Op::inputs(a...), [&] { return call(a...); });
  }
  static Tensor composite(A... a) { return plane_norm_composite(Op::inputs(a...)); }

  // `schema` names the written arguments "Tensor(a!)?" and so on; the plain op has them as "Tensor?".
  static void define(torch::Library& m, const std::string& schema) {
    m.def((Op::name + without_aliases(schema)).c_str(), {at::Tag::pt2_compliant_tag});
    implement(m, Op::name, &only<&kernel>, &only<&autograd>, &only<&composite>);
    if (schema.find('!') == std::string::npos) return;
    const auto name = std::string(Op::name) + "_with_update";
    m.def((name + schema).c_str(), {at::Tag::pt2_compliant_tag});
    implement(m, name.c_str(), &kernel, &autograd, &composite);
  }

 private:
  template <Tensor (*function)(A...)>
  static Tensor only(A... a) {
    check_writes_nothing(Op::inputs(a...));
    return function(a...);
  }
};

}  // namespace torchfastnorm::bindings
