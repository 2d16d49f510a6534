// The formulas of the plane norms in ATen operations. They run where a kernel cannot: under torch.func transforms and
// forward-mode AD, and for every derivative after the first.
#include "plane_norm_composite.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#include <ATen/ops/elu.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

namespace torchfastnorm::bindings {
namespace {

constexpr double leaky_slope = 0.01;

Tensor activate(Activation activation, const Tensor& v) {
  switch (activation) {
    case Activation::Relu:
      return v.relu();
    case Activation::LeakyRelu:
      return at::leaky_relu(v, leaky_slope);
    case Activation::Elu:
      return at::elu(v);
    case Activation::Silu:
      return at::silu(v);
    case Activation::Gelu:
      return at::gelu(v);
    case Activation::GeluTanh:
      return at::gelu(v, "tanh");
    default:
      return v;
  }
}

// Where the signs of its argument are all that is known of it.
Tensor through_signs(Activation activation, const Tensor& grad, const Tensor& positive) {
  return at::where(positive, grad, activation == Activation::LeakyRelu ? grad * leaky_slope : at::zeros_like(grad));
}
Tensor through_activation(Activation activation, const Tensor& grad, const Tensor& v) {
  switch (activation) {
    case Activation::Relu:
      return at::threshold_backward(grad, v, 0);
    case Activation::LeakyRelu:
      return at::leaky_relu_backward(grad, v, leaky_slope, /*self_is_result=*/false);
    case Activation::Elu:
      return at::elu_backward(grad, 1, 1, 1, /*is_result=*/false, v);
    case Activation::Silu: {  // silu_backward has no derivative
      const auto s = at::sigmoid(v);
      return grad * s * (1 + v * (1 - s));
    }
    case Activation::Gelu:
      return at::gelu_backward(grad, v);
    case Activation::GeluTanh:
      return at::gelu_backward(grad, v, "tanh");
    default:
      return grad;
  }
}

struct Normalized {
  Tensor x_hat, rstd, mean, var, deviation;
};

// Two passes, as everywhere: the mean, then the centred squares.
Normalized normalize(const Planes& planes, const Tensor& x, double eps) {
  const auto mean = planes.mean(planes.counted(x)), deviation = planes.counted(x - mean);
  const auto var = planes.mean(deviation * deviation);
  const auto rstd = (var + eps).rsqrt();
  return {deviation * rstd, rstd, mean, var, deviation};
}

}  // namespace

Tensor plane_norm_composite(const PlaneNormInputs& in) {
  check_inputs(in);
  const Planes planes(in);
  const auto x = planes.planes(in.x);
  Normalized n;
  if (in.switchable()) {
    const bool constant = !in.batch_statistics;
    const auto s = switch_statistics(planes, x, constant ? in.running_mean : none, constant ? in.running_var : none);
    n.x_hat = (x - s.mean) * s.rstd, n.mean = s.batch_mean, n.var = s.batch_var;
  } else if (in.batch_statistics) {
    n = normalize(planes, x, in.eps);
    if (in.renorms()) {
      const auto [r, d] = renorm_correction(planes, n.mean.detach(), n.var.detach());
      const auto c = renormed(planes, n.var, r, d);
      n.x_hat = n.deviation * c.scale + c.shift;
    }
  } else {
    n.x_hat = planes.counted(x - planes.channel(*in.running_mean)) * renorm_running_rstd(planes);
  }
  const auto y =
      planes.as_input(planes.counted(activate(planes.activation(), planes.shifted(n.x_hat))), in.x.scalar_type());
  if (in.updates()) planes.update_running(n.mean, n.var);
  return y;
}

Gradients plane_norm_backward_composite(const PlaneNormInputs& in, const Tensor& grad_y, const Tensor& mean,
                                        const Tensor& rstd, at::ScalarType param_dtype, Wanted wanted) {
  const Planes planes(in);
  const auto x = planes.planes(in.x);
  Normalized n;
  Renormed c;
  Switched s;
  if (in.switchable()) {
    // Behind the others (interface/plane_norm.h).
    const auto of_channels = [&](const Tensor& t) -> OptTensor {
      const auto channels = in.x.sym_size(1);
      return in.batch_statistics ? none : OptTensor(t.narrow_symint(0, t.sym_numel() - channels, channels));
    };
    s = switch_statistics(planes, x, of_channels(mean), of_channels(rstd));
    n.x_hat = (x - s.mean) * s.rstd;
  } else if (in.batch_statistics) {
    n = normalize(planes, x, in.eps);
    if (in.renorms()) {
      const auto saved = rstd.reshape_symint({renormed_values, -1});
      c = renormed(planes, n.var, planes.channel(saved.select(0, 4)), planes.channel(saved.select(0, 5)));
      n.x_hat = n.deviation * c.scale + c.shift;
    }
  } else {
    n.rstd = planes.channel(rstd);
    n.x_hat = planes.counted(x - planes.channel(mean)) * n.rstd;
  }
  auto g = planes.counted(planes.planes(grad_y));
  if (has(in.signs))
    g = through_signs(planes.activation(), g, planes.positive(*in.signs));
  else if (planes.activation() != Activation::None)
    g = through_activation(planes.activation(), g, planes.shifted(n.x_hat));
  Gradients results;
  auto& [grad_x, grad_residual, grad_weight, grad_bias, grad_mean_weight, grad_var_weight] = results;
  if (in.switchable()) {
    const auto grads = switch_gradients(planes, s, x, n.x_hat, planes.scaled(g));
    if (wanted[0]) grad_x = planes.as_input(grads.x, in.x.scalar_type());
    if (wanted[4]) grad_mean_weight = grads.mean_weight;
    if (wanted[5]) grad_var_weight = grads.var_weight;
  } else if (wanted[0]) {
    auto rest = planes.scaled(g);
    if (in.corrects()) {
      const auto average = planes.mean(rest), product = planes.mean(rest * n.deviation * c.scale);
      rest = planes.counted(c.scale * (rest - average) + n.deviation * (c.of_product * product + c.of_sum * average));
      grad_x = planes.as_input(rest, in.x.scalar_type());
    } else if (in.batch_statistics) {
      const auto average = planes.mean(rest), correlation = planes.mean(rest * n.x_hat);
      rest = planes.counted(rest - average - n.x_hat * correlation);
    }
    if (!in.corrects()) grad_x = planes.as_input(rest * n.rstd, in.x.scalar_type());
  }
  if (wanted[1]) grad_residual = planes.as_input(g, in.x.scalar_type());
  if (wanted[2]) grad_weight = planes.sum_of_channel(g * n.x_hat).to(param_dtype);
  if (wanted[3]) grad_bias = planes.sum_of_channel(g).to(param_dtype);
  return results;
}

}  // namespace torchfastnorm::bindings
