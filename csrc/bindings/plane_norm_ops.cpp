// The inner ops of the plane norms: schemas and registration. What they are: plane_norm.h.
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

struct Forward {
  static constexpr const char* schema =
      "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, "
      "Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, int sets, int groups, bool batch_statistics, "
      "float? momentum, float eps, str activation, str renorm, float[] bounds, Tensor? mean_weight, "
      "Tensor? var_weight, bool moving_average) -> (Tensor, Tensor, Tensor, Tensor)";

  template <auto function, bool may_write>
  static Results run(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                     const OptTensor& batches, const OptTensor& weight, const OptTensor& bias,
                     const OptTensor& residual, const OptTensor& mask, int64_t sets, int64_t groups,
                     bool batch_statistics, std::optional<double> momentum, double eps, std::string_view activation,
                     std::string_view renorm, at::ArrayRef<double> bounds, const OptTensor& mean_weight,
                     const OptTensor& var_weight, bool moving_average) {
    const PlaneNormInputs in{x,
                             running_mean,
                             running_var,
                             batches,
                             weight,
                             bias,
                             residual,
                             mask,
                             sets_named(sets),
                             groups,
                             batch_statistics,
                             momentum,
                             eps,
                             activation,
                             renorm,
                             bounds_of("plane_norm_forward", bounds),
                             mean_weight,
                             var_weight,
                             moving_average};
    if (!may_write) check_writes_nothing(in);
    return function(in);
  }

  static Results kernel(const PlaneNormInputs& in) { return plane_norm_forward(in, /*statistics=*/true); }
  static Results composite(const PlaneNormInputs& in) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "plane_norm_forward() has no batching rule; call ", in.name(), "() instead");
  }

  template <bool may_write>
  static void define(torch::Library& m) {
    const std::string name = may_write ? "plane_norm_forward_with_update" : "plane_norm_forward";
    m.def((name + (may_write ? schema : without_aliases(schema))).c_str(), {at::Tag::pt2_compliant_tag});
    implement(m, name.c_str(), &run<&kernel, may_write>, &run<&plane_norm_forward_autograd, may_write>,
              &run<&composite, may_write>);
  }
};

template <auto function>
Gradients run_backward(const Tensor& grad_y, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                       const OptTensor& weight, const OptTensor& bias, const OptTensor& residual, const OptTensor& mask,
                       const OptTensor& signs, int64_t sets, int64_t groups, bool batch_statistics, double eps,
                       std::string_view activation, std::string_view renorm, const OptTensor& mean_weight,
                       const OptTensor& var_weight, at::ScalarType param_dtype, Wanted wanted) {
  const PlaneNormInputs in{.x = x,
                           .weight = weight,
                           .bias = bias,
                           .residual = residual,
                           .mask = mask,
                           .sets = sets_named(sets),
                           .groups = groups,
                           .batch_statistics = batch_statistics,
                           .eps = eps,
                           .activation = activation,
                           .renorm = renorm,
                           .mean_weight = mean_weight,
                           .var_weight = var_weight,
                           .signs = signs};
  return function(in, grad_y, mean, rstd, param_dtype, wanted);
}

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  Forward::define<false>(m);
  Forward::define<true>(m);
  m.def(
      "plane_norm_backward(Tensor grad_y, Tensor input, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor? mask, Tensor? signs, int sets, int groups, bool batch_statistics, float eps, "
      "str activation, str renorm, Tensor? mean_weight, Tensor? var_weight, ScalarType param_dtype, bool[6] wanted) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  implement(m, "plane_norm_backward", &run_backward<&plane_norm_backward>, &run_backward<&plane_norm_backward_autograd>,
            &run_backward<&plane_norm_backward_composite>);
}

}  // namespace

const c10::TypedOperatorHandle<ForwardSignature>& plane_norm_forward_op(bool updates) {
  static const auto plain = find_op<ForwardSignature>("plane_norm_forward");
  static const auto with_update = find_op<ForwardSignature>("plane_norm_forward_with_update");
  return updates ? with_update : plain;
}

const c10::TypedOperatorHandle<BackwardSignature>& plane_norm_backward_op() {
  static const auto handle = find_op<BackwardSignature>("plane_norm_backward");
  return handle;
}

}  // namespace torchfastnorm::bindings
