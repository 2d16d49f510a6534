// The Autograd kernels of the row norms: the node that forward leaves behind, and the derivative of the backward op.
#include <torch/csrc/autograd/custom_function.h>

#include "common/node.h"
#include "row_norm.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/ops/sum.h>

namespace torchfastnorm::bindings {
namespace {

using torch::autograd::AutogradContext;

class RowNormNode final : public NormNode<4> {
 public:
  enum Slot { H, Weight, Mean, Rstd };
  enum Input { X, Residual, WeightInput, Bias };

  RowNormNode(const RowNormOp& op, const RowNormInputs<c10::SymIntArrayRef>& in)
      : op_(op),
        dims_(in.shape.size()),
        eps_(in.eps),
        x_type_(in.x.scalar_type()),
        h_type_(has(in.residual) ? in.residual->scalar_type() : x_type_),
        param_type_(common_type(in.weight, in.bias, x_type_)) {
    set_next_edges(torch::autograd::collect_next_edges(in.x, in.residual.value_or(Tensor()),
                                                       in.weight.value_or(Tensor()), in.bias.value_or(Tensor())));
  }

  // Only what the gradients asked for will read: bias alone needs nothing, weight's does not need weight.
  void save_for_backward(const RowNormInputs<c10::SymIntArrayRef>& in, const Tensor& sum, const Tensor& mean,
                         const Tensor& rstd) {
    const bool of_h = requires_grad(in.x) || requires_grad(in.residual);
    if (of_h && has(in.weight)) save(Weight, *in.weight);
    if (!of_h && !requires_grad(in.weight)) return;
    save(H, sum.defined() ? sum : in.x, /*is_output=*/sum.defined());
    if (op_.centered) save(Mean, mean);
    save(Rstd, rstd);
  }

  std::string name() const override { return op_.node_name; }

 protected:
  variable_list backward(const variable_list& grads) override {
    const auto& grad_y = grads[0];
    const auto grad_sum = grads.size() > 1 ? grads[1] : Tensor();
    const bool of_x = task_should_compute_output(X), of_residual = task_should_compute_output(Residual);
    const Mask mask{of_residual || (of_x && x_type_ == h_type_), of_x && x_type_ != h_type_,
                    task_should_compute_output(WeightInput), task_should_compute_output(Bias)};
    variable_list out(4);
    if (!grad_y.defined()) {
      if (of_x && grad_sum.defined()) out[X] = grad_sum.to(x_type_);
      if (of_residual) out[Residual] = grad_sum;
      return out;
    }
    const auto h = unpack(H);
    if (!h.defined()) {
      if (mask[3]) out[Bias] = sum_of_rows(grad_y);
      return out;
    }
    auto [grad_h, grad_x, grad_weight, grad_bias] = op_.calls().backward.call(
        grad_y, optional(grad_sum), h, h.sym_sizes().slice(h.dim() - dims_), optional(unpack(Weight)),
        optional(unpack(Mean)), unpack(Rstd), eps_, x_type_, param_type_, mask);
    if (of_x) out[X] = mask[1] ? grad_x : grad_h;
    if (of_residual) out[Residual] = grad_h;
    out[WeightInput] = std::move(grad_weight);  // the engine rounds these two to their parameters' dtypes
    out[Bias] = std::move(grad_bias);
    return out;
  }

  void collect_numbers(CompiledNodeArgs& args) const override {
    args.collect(std::string(op_.name));
    args.collect(dims_);
    args.collect(eps_);
    args.collect(x_type_);
    args.collect(h_type_);
    args.collect(param_type_);
  }

 private:
  Tensor sum_of_rows(const Tensor& grad_y) const {
    std::vector<int64_t> lead(grad_y.dim() - dims_);
    for (size_t d = 0; d < lead.size(); ++d) lead[d] = d;
    return lead.empty() ? grad_y : at::sum(grad_y, lead, /*keepdim=*/false, statistics_type(h_type_)).to(param_type_);
  }

  const RowNormOp& op_;
  const int64_t dims_;
  const double eps_;
  const at::ScalarType x_type_, h_type_, param_type_;
};

// The backward op as a differentiable function. Its results are packed, for Function takes no undefined ones.
struct DifferentiableBackward : torch::autograd::Function<DifferentiableBackward> {
  static constexpr bool is_traceable = true;  // by compiled autograd

  static variable_list forward(AutogradContext* ctx, const RowNormOp* op, const Tensor& grad_y,
                               const OptTensor& grad_sum, const Tensor& h, c10::SymIntArrayRef shape,
                               const OptTensor& weight, const OptTensor& mean, const Tensor& rstd, double eps,
                               at::ScalarType x_dtype, at::ScalarType param_dtype, Mask mask) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({grad_y, h, weight.value_or(Tensor())});
    ctx->saved_data["centered"] = op->centered;
    ctx->saved_data["dims"] = static_cast<int64_t>(shape.size());
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["mask"] = std::vector<bool>(mask.begin(), mask.end());
    if (has(grad_sum)) ctx->saved_data["sum_type"] = static_cast<int64_t>(grad_sum->scalar_type());
    const auto results =
        op->calls().backward.call(grad_y, grad_sum, h, shape, weight, mean, rstd, eps, x_dtype, param_dtype, mask);
    variable_list packed;
    std::apply([&](const auto&... t) { (void(t.defined() ? packed.push_back(t) : void()), ...); }, results);
    return packed;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& packed) {
    const auto mask = ctx->saved_data["mask"].toBoolList();
    std::array<Tensor, 4> grads;
    for (size_t i = 0, next = 0; i < 4; ++i)
      if (mask[i]) grads[i] = packed[next++];
    const auto saved = ctx->get_saved_variables();
    const auto& [grad_y, h, weight] = std::tie(saved[0], saved[1], saved[2]);
    const auto [of_grad_y, of_grad_sum, of_h, of_weight] = row_norm_double_backward(
        ctx->saved_data["centered"].toBool(), {grads[0], grads[1], grads[2], grads[3]}, grad_y, h,
        ctx->saved_data["dims"].toInt(), optional(weight), ctx->saved_data["eps"].toDouble());
    const auto rounded = [](const Tensor& t, at::ScalarType type) { return t.defined() ? t.to(type) : t; };
    variable_list out(12);
    out[1] = rounded(of_grad_y, grad_y.scalar_type());
    if (const auto type = ctx->saved_data.find("sum_type"); type != ctx->saved_data.end())
      out[2] = rounded(of_grad_sum, static_cast<at::ScalarType>(type->second.toInt()));
    out[3] = rounded(of_h, h.scalar_type());
    if (weight.defined()) out[5] = rounded(of_weight, weight.scalar_type());
    return out;
  }
};

}  // namespace

Pair row_norm_autograd(const RowNormOp& op, const RowNormInputs<c10::SymIntArrayRef>& in,
                       c10::function_ref<Pair()> without_graph) {
  if (under_transform() || has_tangent(in.x) || has_tangent(in.residual) || has_tangent(in.weight) ||
      has_tangent(in.bias))
    return row_norm_composite(op, in);
  if (!graph_wanted(in.x, in.residual, in.weight, in.bias)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return without_graph();
  }
  auto [y, sum, mean, rstd] = row_norm_forward_autograd(op, in);
  return {std::move(y), std::move(sum)};
}

Four row_norm_forward_autograd(const RowNormOp& op, const RowNormInputs<c10::SymIntArrayRef>& in) {
  TORCH_CHECK_NOT_IMPLEMENTED(!under_transform(), op.name, "_forward() has no rule for torch.func; call ", op.name,
                              "() instead");
  Four results;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    results = op.calls().forward.call(in.x, in.residual, in.shape, in.weight, in.bias, in.eps, in.out_dtype);
  }
  if (!graph_wanted(in.x, in.residual, in.weight, in.bias)) return results;
  const auto& [y, sum, mean, rstd] = results;
  auto node = make_node<RowNormNode>(op, in);
  torch::autograd::set_history(y, node);
  if (sum.defined()) torch::autograd::set_history(sum, node);
  node->save_for_backward(in, sum, mean, rstd);
  return results;
}

Four row_norm_backward_autograd(const RowNormOp& op, const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h,
                                c10::SymIntArrayRef shape, const OptTensor& weight, const OptTensor& mean,
                                const Tensor& rstd, double eps, at::ScalarType x_dtype, at::ScalarType param_dtype,
                                Mask mask) {
  if (under_transform())
    return row_norm_backward_composite(op, grad_y, grad_sum, h, shape.size(), weight, eps, x_dtype, param_dtype, mask);
  if (!graph_wanted(grad_y, grad_sum, h, weight)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return op.calls().backward.call(grad_y, grad_sum, h, shape, weight, mean, rstd, eps, x_dtype, param_dtype, mask);
  }
  const auto packed = DifferentiableBackward::apply(&op, grad_y, grad_sum, h, shape, weight, mean, rstd, eps, x_dtype,
                                                    param_dtype, mask);
  std::array<Tensor, 4> out;
  for (size_t i = 0, next = 0; i < 4; ++i)
    if (mask[i]) out[i] = packed[next++];
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace torchfastnorm::bindings
