// The formulas of the plane norms in ATen operations. They run where a kernel cannot: under torch.func transforms and
// forward-mode AD, and for every derivative after the first. All arithmetic is in the statistics' type, as the
// kernels'; tensors are seen as (samples, sets or groups of channels, channels of a set, spatial).
#include "../math/renorm.h"
#include "plane_norm.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#include <ATen/ops/elu.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/AutogradState.h>

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

// One call's tensors in the common shape, and the sums over a set and over a channel.
class Planes {
 public:
  explicit Planes(const PlaneNormInputs& in)
      : in_(in), type_(statistics_type(in.x.scalar_type())), activation_(activation_named(in.name(), in.activation)) {
    const auto sizes = in.x.sym_sizes();
    const c10::SymInt samples = sizes.empty() ? c10::SymInt(1) : sizes[0];
    channels_ = sizes.size() > 1 ? sizes[1] : c10::SymInt(0);
    if (in.renorms()) samples_ = double(samples.guard_int(__FILE__, __LINE__));
    c10::SymInt spatial = 1;
    for (size_t d = 2; d < sizes.size(); ++d) spatial *= sizes[d];
    const bool group = in.sets == Sets::Group;
    per_set_ = group ? channels_ / in.groups : c10::SymInt(1);
    const c10::SymInt sets = group ? c10::SymInt(in.groups) : channels_;
    shape_ = {samples, sets, per_set_, spatial};
    per_channel_ = {1, sets, per_set_, 1};
    if (in.sets == Sets::Batch) dims_.insert(dims_.begin(), 0);
    if (has(in.mask)) {
      std::vector<c10::SymInt> full(sizes.begin(), sizes.end());
      if (full.size() > 1) full[1] = 1;
      mask_ = in.mask->expand_symint(full).reshape_symint({samples, 1, 1, spatial});
      count_ = (mask_.to(type_).sum(dims_, /*keepdim=*/true) * per_set_).clamp_min(1);
    } else {
      const auto elements = spatial * per_set_ * (in.sets == Sets::Batch ? samples : c10::SymInt(1));
      count_ = at::full({}, elements, in.x.options().dtype(type_));
    }
  }

  Tensor planes(const Tensor& t) const { return t.to(type_).reshape_symint(shape_); }
  Tensor channel(const Tensor& t) const { return t.to(type_).reshape_symint(per_channel_); }
  Tensor counted(const Tensor& t) const { return mask_.defined() ? at::where(mask_, t, 0) : t; }
  Tensor mean(const Tensor& counted) const { return counted.sum(dims_, /*keepdim=*/true) / count_; }
  Tensor sum_of_channel(const Tensor& t) const { return t.sum(at::IntArrayRef{0, 3}).reshape_symint({channels_}); }
  Tensor as_input(const Tensor& t, at::ScalarType type) const { return t.to(type).reshape_symint(in_.x.sym_sizes()); }
  Tensor scaled(const Tensor& t) const { return has(in_.weight) ? t * channel(*in_.weight) : t; }
  Activation activation() const { return activation_; }

  // What the activation is applied to.
  Tensor shifted(const Tensor& x_hat) const {
    auto z = scaled(x_hat);
    if (has(in_.bias)) z = z + channel(*in_.bias);
    if (has(in_.residual)) z = z + counted(planes(*in_.residual));
    return z;
  }

  void update_running(const Tensor& mean, const Tensor& var) const {
    const at::NoGradGuard no_grad;
    const c10::AutoFwGradMode no_tangents(false);
    const auto batched = [](const Tensor& t) { return t.key_set().has(c10::DispatchKey::FuncTorchBatched); };
    TORCH_CHECK(!has(in_.running_mean) || !batched(mean) || (batched(*in_.running_mean) && batched(*in_.running_var)),
                in_.name(), "(): under vmap every element of the batch would update the same running_mean and ",
                "running_var; map over these too, or call without them (track_running_stats=False)");
    Tensor factor;
    if (has(in_.batches)) in_.batches->add_(1);
    if (!in_.momentum) factor = in_.batches->to(type_).reciprocal();
    if (!has(in_.running_mean) || in_.x.sym_numel() == 0) return;  // of an empty batch nothing is learnt
    auto target = var * bessel();
    if (in_.renorm == "ludvb") target = var.sqrt() + in_.eps;
    if (in_.renorm == "torchrl") target = var * (samples_ / std::max(samples_ - 1, 1.));
    const auto update = [&](const Tensor& running, const Tensor& statistic) {
      const auto average = statistic.mean(at::IntArrayRef{0}).reshape_symint({channels_}).to(running.scalar_type());
      if (factor.defined())
        running.add_((average - running) * factor);
      else
        running.mul_(1 - *in_.momentum).add_(average, *in_.momentum);
    };
    update(*in_.running_mean, mean);
    update(*in_.running_var, target);
  }

  Tensor bessel() const { return count_ / (count_ - 1).clamp_min(1); }
  const PlaneNormInputs& inputs() const { return in_; }

 private:
  const PlaneNormInputs& in_;
  at::ScalarType type_;
  Activation activation_;
  c10::SymInt channels_, per_set_;
  std::vector<c10::SymInt> shape_, per_channel_;
  std::vector<int64_t> dims_{2, 3};
  Tensor mask_, count_;
  double samples_ = 1;
};

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

// Batch Renormalization, as in math/renorm.h: r and d are constants, what the others make of var is differentiated.
struct Renormed {
  Tensor scale, shift, of_product, of_sum;
};

Renormed renormed(const Planes& planes, const Tensor& var, const Tensor& r, const Tensor& d) {
  const auto& in = planes.inputs();
  if (in.renorm == "sb3") {
    const auto square = var * planes.bessel(), scale = (square / (r * r) + in.eps).rsqrt();
    const auto deviation = at::where(square > 0, square, 1).sqrt(), slope = scale * scale / (r * r);
    const auto of_d = at::where(square > 0, d / r * scale, 0);
    return {scale, of_d * deviation, -planes.bessel() * slope,
            planes.bessel() * of_d * (deviation.reciprocal() - deviation * slope)};
  }
  if (in.renorm == "ludvb") {
    const auto deviation = at::where(var > 0, var, 1).sqrt();
    const auto inverse = (at::where(var > 0, deviation, 0) + in.eps).reciprocal();
    return {r * inverse, d, at::where(var > 0, -inverse / deviation, 0), at::zeros_like(var)};
  }
  const auto rstd = (var + in.eps).rsqrt();
  return {r * rstd, d, -rstd * rstd, at::zeros_like(var)};
}

// r and d of a batch, from its statistics and the running ones.
std::pair<Tensor, Tensor> correction(const Planes& planes, const Tensor& mean, const Tensor& var) {
  const auto& in = planes.inputs();
  const auto running = planes.channel(*in.running_var);
  const bool of_deviation = in.renorm == "ludvb";
  const auto of_running = of_deviation ? running.reciprocal() : (running + in.eps).rsqrt();
  const auto sigma = of_deviation         ? var.sqrt() + in.eps
                     : in.renorm == "sb3" ? (var * planes.bessel() + in.eps).sqrt()
                                          : (var + in.eps).sqrt();
  const auto bound = [&](double least, double most, double begin, double end) {
    const auto value = at::full({}, most, var.options());
    if (!has(in.batches)) return value;
    const auto line = (in.batches->to(var.scalar_type()) - begin) / (end > begin ? end - begin : 1);
    return at::where(*in.batches >= end, value, least + (most - least) * line.clamp(0, 1));
  };
  const auto& b = in.bounds;
  const auto r_max = bound(1, b.r_max, b.r_begin, b.r_end), d_max = bound(0, b.d_max, b.d_begin, b.d_end);
  const auto r = at::minimum(at::maximum(sigma * of_running, r_max.reciprocal()), r_max);
  const auto d = at::minimum(at::maximum((mean - planes.channel(*in.running_mean)) * of_running, -d_max), d_max);
  return {r, d};
}

}  // namespace

Tensor plane_norm_composite(const PlaneNormInputs& in) {
  check_inputs(in);
  const Planes planes(in);
  const auto x = planes.planes(in.x);
  Normalized n;
  if (in.batch_statistics) {
    n = normalize(planes, x, in.eps);
    if (in.renorms()) {
      const auto [r, d] = correction(planes, n.mean.detach(), n.var.detach());
      const auto c = renormed(planes, n.var, r, d);
      n.x_hat = n.deviation * c.scale + c.shift;
    }
  } else {
    const auto var = planes.channel(*in.running_var);
    n.x_hat = planes.counted(x - planes.channel(*in.running_mean)) *
              (in.renorm == "ludvb" ? var.reciprocal() : (var + in.eps).rsqrt());
  }
  const auto y =
      planes.as_input(planes.counted(activate(planes.activation(), planes.shifted(n.x_hat))), in.x.scalar_type());
  if (in.updates()) planes.update_running(n.mean, n.var);
  return y;
}

Four plane_norm_backward_composite(const PlaneNormInputs& in, const Tensor& grad_y, const Tensor& mean,
                                   const Tensor& rstd, at::ScalarType param_dtype, Wanted wanted) {
  const Planes planes(in);
  const auto x = planes.planes(in.x);
  Normalized n;
  Renormed c;
  if (in.batch_statistics) {
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
  if (planes.activation() != Activation::None) g = through_activation(planes.activation(), g, planes.shifted(n.x_hat));
  Four results;
  auto& [grad_x, grad_residual, grad_weight, grad_bias] = results;
  if (wanted[0]) {
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
