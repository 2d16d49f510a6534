// The Autograd kernels of whitening: the node that forward leaves behind. A gradient that will be differentiated again
// is computed by the composite formula, which torch differentiates.
#include "common/node.h"
#include "whitening.h"

namespace torchfastnorm::bindings {
namespace {

using ForwardSignature = Whitened(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_wm,
                                  const OptTensor& weight, const OptTensor& bias, bool training, double momentum,
                                  double eps, int64_t width, std::string_view method, int64_t iterations);
using BackwardSignature = WhiteningGradients(const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                                             const Tensor& wm, const Tensor& decomposition, const OptTensor& weight,
                                             bool training, double eps, int64_t width, std::string_view method,
                                             int64_t iterations, at::ScalarType param_dtype, WhiteningWanted wanted);

const c10::TypedOperatorHandle<ForwardSignature>& forward_op(bool updates) {
  static const auto plain = find_op<ForwardSignature>("whitening_forward");
  static const auto with_update = find_op<ForwardSignature>("whitening_forward_with_update");
  return updates ? with_update : plain;
}
const c10::TypedOperatorHandle<BackwardSignature>& backward_op() {
  static const auto handle = find_op<BackwardSignature>("whitening_backward");
  return handle;
}

class WhiteningNode final : public NormNode<5> {
 public:
  enum Slot { X, Weight, Mean, Wm, Decomposition };
  enum Edge { OfX, OfWeight, OfBias };

  explicit WhiteningNode(const WhiteningInputs& in)
      : training_(in.training),
        eps_(in.eps),
        width_(in.width),
        method_(in.method),
        iterations_(in.iterations),
        param_type_(common_type(in.weight, in.bias, in.x.scalar_type())) {
    set_next_edges(torch::autograd::collect_next_edges(in.x, in.weight.value_or(Tensor()), in.bias.value_or(Tensor())));
  }

  void save_for_backward(const WhiteningInputs& in, const Tensor& mean, const Tensor& wm, const Tensor& decomposition) {
    save(X, in.x);
    if (has(in.weight)) save(Weight, *in.weight);
    save(Mean, mean);
    save(Wm, wm);
    save(Decomposition, decomposition);
  }

  std::string name() const override { return "BatchWhiteningBackward"; }

 protected:
  variable_list backward(const variable_list& grads) override {
    variable_list out(3);
    const WhiteningWanted wanted{task_should_compute_output(OfX), task_should_compute_output(OfWeight),
                                 task_should_compute_output(OfBias)};
    if (!grads[0].defined() || wanted == WhiteningWanted{}) return out;
    auto [grad_x, grad_weight, grad_bias] = backward_op().call(
        grads[0], unpack(X), unpack(Mean), unpack(Wm), unpack(Decomposition), optional(unpack(Weight)), training_, eps_,
        width_, method_, iterations_, param_type_, wanted);
    out[OfX] = std::move(grad_x);
    out[OfWeight] = std::move(grad_weight);  // the engine rounds to the dtypes of the inputs
    out[OfBias] = std::move(grad_bias);
    return out;
  }

  void collect_numbers(CompiledNodeArgs& args) const override {
    args.collect(training_);
    args.collect(eps_);
    args.collect(width_);
    args.collect(method_);
    args.collect(iterations_);
    args.collect(param_type_);
  }

 private:
  const bool training_;
  const double eps_;
  const int64_t width_;
  const std::string method_;
  const int64_t iterations_;
  const at::ScalarType param_type_;
};

bool wants_graph(const WhiteningInputs& in) { return graph_wanted(in.x, in.weight, in.bias); }

}  // namespace

Tensor whitening_autograd(const WhiteningInputs& in, c10::function_ref<Tensor()> without_graph) {
  if (under_transform() || has_tangent(in.x) || has_tangent(in.weight) || has_tangent(in.bias))
    return whitening_composite(in);
  if (!wants_graph(in)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return without_graph();
  }
  return std::get<0>(whitening_forward_autograd(in));
}

Whitened whitening_forward_autograd(const WhiteningInputs& in) {
  TORCH_CHECK_NOT_IMPLEMENTED(!under_transform(),
                              "whitening_forward() has no rule for torch.func; call batch_whitening() instead");
  const bool graph = wants_graph(in);
  TORCH_CHECK(
      !graph || !(requires_grad(in.running_mean) || requires_grad(in.running_wm)),
      "batch_whitening() is not differentiable with respect to running_mean and running_wm: they cannot require ",
      "a gradient; detach() them");
  Whitened results;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    results = forward_op(in.updates())
                  .call(in.x, in.running_mean, in.running_wm, in.weight, in.bias, in.training, in.momentum, in.eps,
                        in.width, in.method, in.iterations);
  }
  if (!graph) return results;
  const auto& [y, mean, wm, decomposition] = results;
  auto node = make_node<WhiteningNode>(in);
  torch::autograd::set_history(y, node);
  node->save_for_backward(in, mean, wm, decomposition);
  return results;
}

WhiteningGradients whitening_backward_autograd(const WhiteningInputs& in, const Tensor& grad_y, const Tensor& mean,
                                               const Tensor& wm, const Tensor& decomposition,
                                               at::ScalarType param_dtype, WhiteningWanted wanted) {
  if (under_transform() || has_tangent(grad_y) || graph_wanted(grad_y) || wants_graph(in))
    return whitening_backward_composite(in, grad_y, mean, wm, param_dtype, wanted);
  const at::AutoDispatchBelowADInplaceOrView below;
  return backward_op().call(grad_y, in.x, mean, wm, decomposition, in.weight, in.training, in.eps, in.width, in.method,
                            in.iterations, param_dtype, wanted);
}

namespace {

struct Forward {
  static constexpr const char* schema =
      "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_wm, Tensor? weight, Tensor? bias, bool training, "
      "float momentum, float eps, int width, str method, int iterations) -> (Tensor, Tensor, Tensor, Tensor)";

  template <auto function, bool may_write>
  static Whitened run(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_wm,
                      const OptTensor& weight, const OptTensor& bias, bool training, double momentum, double eps,
                      int64_t width, std::string_view method, int64_t iterations) {
    const WhiteningInputs in{x,        running_mean, running_wm, weight, bias,      training,
                             momentum, eps,          width,      method, iterations};
    TORCH_CHECK(may_write || !in.updates(), "whitening_forward writes nothing; call whitening_forward_with_update");
    return function(in);
  }
  static Whitened kernel(const WhiteningInputs& in) { return whitening_forward(in, /*statistics=*/true); }
  static Whitened composite(const WhiteningInputs&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "whitening_forward() has no batching rule; call batch_whitening() instead");
  }

  template <bool may_write>
  static void define(torch::Library& m) {
    const std::string name = may_write ? "whitening_forward_with_update" : "whitening_forward";
    m.def((name + (may_write ? schema : without_aliases(schema))).c_str(), {at::Tag::pt2_compliant_tag});
    implement(m, name.c_str(), &run<&kernel, may_write>, &run<&whitening_forward_autograd, may_write>,
              &run<&composite, may_write>);
  }
};

template <auto function>
WhiteningGradients run_backward(const Tensor& grad_y, const Tensor& x, const Tensor& mean, const Tensor& wm,
                                const Tensor& decomposition, const OptTensor& weight, bool training, double eps,
                                int64_t width, std::string_view method, int64_t iterations, at::ScalarType param_dtype,
                                WhiteningWanted wanted) {
  static const OptTensor none;
  const WhiteningInputs in{x, none, none, weight, none, training, 0, eps, width, method, iterations};
  return function(in, grad_y, mean, wm, decomposition, param_dtype, wanted);
}

WhiteningGradients backward_composite(const WhiteningInputs& in, const Tensor& grad_y, const Tensor& mean,
                                      const Tensor& wm, const Tensor&, at::ScalarType param_dtype,
                                      WhiteningWanted wanted) {
  return whitening_backward_composite(in, grad_y, mean, wm, param_dtype, wanted);
}

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  Forward::define<false>(m);
  Forward::define<true>(m);
  m.def(
      "whitening_backward(Tensor grad_y, Tensor input, Tensor mean, Tensor wm, Tensor decomposition, Tensor? weight, "
      "bool training, float eps, int width, str method, int iterations, ScalarType param_dtype, bool[3] wanted) "
      "-> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  implement(m, "whitening_backward", &run_backward<&whitening_backward>, &run_backward<&whitening_backward_autograd>,
            &run_backward<&backward_composite>);
}

}  // namespace
}  // namespace torchfastnorm::bindings
