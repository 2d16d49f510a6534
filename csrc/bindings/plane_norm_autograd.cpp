// The Autograd kernels of the plane norms: the node that forward leaves behind. A gradient that will be differentiated
// again is computed by the composite formula, which torch differentiates.
#include "common/node.h"
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

class PlaneNormNode final : public NormNode<10> {
 public:
  // The first six are the edges, too.
  enum Slot { X, Residual, Weight, Bias, MeanWeight, VarWeight, Mask, Mean, Rstd, Signs };

  explicit PlaneNormNode(const PlaneNormInputs& in)
      : sets_(in.sets),
        groups_(in.groups),
        batch_statistics_(in.batch_statistics),
        eps_(in.eps),
        activation_(in.activation),
        renorm_(in.renorm),
        switchable_(in.switchable()),
        param_type_(common_type(in.weight, in.bias, in.x.scalar_type())) {
    set_next_edges(torch::autograd::collect_next_edges(
        in.x, in.residual.value_or(Tensor()), in.weight.value_or(Tensor()), in.bias.value_or(Tensor()),
        in.mean_weight.value_or(Tensor()), in.var_weight.value_or(Tensor())));
  }

  // residual and bias are read again only for the activation's derivative, and not where its signs tell all.
  void save_for_backward(const PlaneNormInputs& in, const Results& results) {
    const auto& [y, mean, rstd, signs] = results;
    save(X, in.x);
    if (signs.defined()) save(Signs, signs);
    if (activated() && has(in.residual) && !signs.defined()) save(Residual, *in.residual);
    if (has(in.weight)) save(Weight, *in.weight);
    if (activated() && has(in.bias) && !signs.defined()) save(Bias, *in.bias);
    if (in.switchable()) save(MeanWeight, *in.mean_weight), save(VarWeight, *in.var_weight);
    if (has(in.mask)) save(Mask, *in.mask);
    save(Mean, mean);
    save(Rstd, rstd);
  }

  std::string name() const override { return plane_norm_op(sets_, renorm_ != "none", switchable_).node_name; }

 protected:
  variable_list backward(const variable_list& grads) override {
    const auto& grad_y = grads[0];
    variable_list out(6);
    if (!grad_y.defined()) return out;
    const auto x = unpack(X), mask = unpack(Mask);
    const bool of_residual = task_should_compute_output(Residual);
    const bool passes = !activated() && !mask.defined();  // the residual's gradient is grad_y itself
    const Wanted wanted{task_should_compute_output(X),          of_residual && !passes,
                        task_should_compute_output(Weight),     task_should_compute_output(Bias),
                        task_should_compute_output(MeanWeight), task_should_compute_output(VarWeight)};
    if (of_residual && passes) out[Residual] = grad_y;
    if (wanted == Wanted{}) return out;
    const auto residual = optional(unpack(Residual)), weight = optional(unpack(Weight)), bias = optional(unpack(Bias));
    const auto mean_weight = optional(unpack(MeanWeight)), var_weight = optional(unpack(VarWeight));
    auto [grad_x, grad_residual, grad_weight, grad_bias, grad_mean_weight, grad_var_weight] =
        plane_norm_backward_op().call(grad_y, x, unpack(Mean), unpack(Rstd), weight, bias, residual, optional(mask),
                                      optional(unpack(Signs)), static_cast<int64_t>(sets_), groups_, batch_statistics_,
                                      eps_, activation_, renorm_, mean_weight, var_weight, param_type_, wanted);
    out[X] = std::move(grad_x);
    if (wanted[1]) out[Residual] = std::move(grad_residual);  // the engine rounds to the dtypes of the inputs
    out[Weight] = std::move(grad_weight);
    out[Bias] = std::move(grad_bias);
    out[MeanWeight] = std::move(grad_mean_weight);
    out[VarWeight] = std::move(grad_var_weight);
    return out;
  }

  void collect_numbers(CompiledNodeArgs& args) const override {
    args.collect(static_cast<int64_t>(sets_));
    args.collect(groups_);
    args.collect(batch_statistics_);
    args.collect(eps_);
    args.collect(activation_);
    args.collect(renorm_);
    args.collect(switchable_);
    args.collect(param_type_);
  }

 private:
  bool activated() const { return activation_ != "none"; }

  const Sets sets_;
  const int64_t groups_;
  const bool batch_statistics_;
  const double eps_;
  const std::string activation_, renorm_;
  const bool switchable_;
  const at::ScalarType param_type_;
};

bool wants_graph(const PlaneNormInputs& in) {
  return graph_wanted(in.x, in.residual, in.weight, in.bias, in.mean_weight, in.var_weight);
}

}  // namespace

Tensor plane_norm_autograd(const PlaneNormInputs& in, c10::function_ref<Tensor()> without_graph) {
  if (under_transform() || has_tangent(in.x) || has_tangent(in.residual) || has_tangent(in.weight) ||
      has_tangent(in.bias) || has_tangent(in.mean_weight) || has_tangent(in.var_weight))
    return plane_norm_composite(in);
  if (!wants_graph(in)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return without_graph();
  }
  return std::get<0>(plane_norm_forward_autograd(in));
}

Results plane_norm_forward_autograd(const PlaneNormInputs& in) {
  TORCH_CHECK_NOT_IMPLEMENTED(!under_transform(), "plane_norm_forward() has no rule for torch.func; call ", in.name(),
                              "() instead");
  const bool graph = wants_graph(in);
  TORCH_CHECK(!graph || !(requires_grad(in.running_mean) || requires_grad(in.running_var)), in.name(),
              "() is not differentiable with respect to running_mean and running_var: they cannot require a gradient; ",
              "detach() them");
  Results results;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    results = plane_norm_forward_op(in.updates())
                  .call(in.x, in.running_mean, in.running_var, in.batches, in.weight, in.bias, in.residual, in.mask,
                        static_cast<int64_t>(in.sets), in.groups, in.batch_statistics, in.momentum, in.eps,
                        in.activation, in.renorm, list_of(in.bounds), in.mean_weight, in.var_weight, in.moving_average);
  }
  if (!graph) return results;
  auto node = make_node<PlaneNormNode>(in);
  torch::autograd::set_history(std::get<0>(results), node);
  node->save_for_backward(in, results);
  return results;
}

Gradients plane_norm_backward_autograd(const PlaneNormInputs& in, const Tensor& grad_y, const Tensor& mean,
                                       const Tensor& rstd, at::ScalarType param_dtype, Wanted wanted) {
  if (under_transform() || has_tangent(grad_y) || graph_wanted(grad_y) || wants_graph(in))
    return plane_norm_backward_composite(in, grad_y, mean, rstd, param_dtype, wanted);
  const at::AutoDispatchBelowADInplaceOrView below;
  return plane_norm_backward_op().call(grad_y, in.x, mean, rstd, in.weight, in.bias, in.residual, in.mask, in.signs,
                                       static_cast<int64_t>(in.sets), in.groups, in.batch_statistics, in.eps,
                                       in.activation, in.renorm, in.mean_weight, in.var_weight, param_dtype, wanted);
}

}  // namespace torchfastnorm::bindings
