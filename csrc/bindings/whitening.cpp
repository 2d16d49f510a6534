// The CPU and CUDA kernels of whitening: check, allocate, and the two passes of a backend with the small matrices
// between them (interface/batch_whitening.h, whitening_matrix.h).
#include "whitening.h"

#include "common/backend.h"
#include "common/checks.h"
#include "common/planes.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace torchfastnorm::bindings {
namespace {

// One tensor's positions, on the device that it is on.
class Passes {
 public:
  Passes(const Tensor& x, int64_t width)
      : scope_(x),
        shape_(plane_shape(x, x.size(1) / width)),
        type_(dtype_of(x.scalar_type())),
        width_(width),
        options_(x.options().dtype(statistics_type(x.scalar_type())).memory_format(std::nullopt)) {}

  int64_t groups() const { return shape_.groups; }
  double positions() const { return double(shape_.samples * shape_.spatial); }
  const at::TensorOptions& options() const { return options_; }
  Tensor vector() const { return at::empty({shape_.channels}, options_); }
  Tensor matrix() const { return at::empty({groups(), width_, width_}, options_); }
  // A number for each channel as (groups, width, 1), in the statistics' type.
  Tensor column(const Tensor& t) const { return t.to(options_.dtype().toScalarType()).reshape({groups(), width_, 1}); }
  OptTensor flat(const OptTensor& t) const { return parameter(t, options_.dtype().toScalarType()); }

  struct Moments {
    Tensor mean_u, mean_v, matrix;
  };
  // `v` undefined: of u with itself
  Moments moments(const Tensor& u, const Tensor& v = {}) const {
    Moments m{vector(), v.defined() ? vector() : Tensor(), matrix()};
    WhiteningMoments arguments{};
    arguments.u = u.const_data_ptr();
    arguments.v = v.defined() ? v.const_data_ptr() : arguments.u;
    arguments.mean_u = output(m.mean_u);
    arguments.mean_v = output(m.mean_v);
    arguments.moments = output(m.matrix);
    arguments.shape = shape_;
    arguments.type = type_;
    Tensor workspace;
    if (const auto bytes = scope_.backend().batch_whitening_moments_workspace(arguments)) {
      workspace = at::empty({bytes}, options_.dtype(at::kByte));
      arguments.workspace = output(workspace);
    }
    scope_.backend().batch_whitening_moments(arguments, scope_.stream());
    return m;
  }

  struct Term {
    const Tensor& x;
    Tensor matrix, mean;
  };
  void transform(const Term& u, const Term& v, const OptTensor& shift, const Tensor& y) const {
    const auto matrix_u = u.matrix.contiguous();
    const auto matrix_v = v.matrix.defined() ? v.matrix.contiguous() : Tensor();
    WhiteningTransform arguments{};
    arguments.u = u.x.const_data_ptr();
    arguments.matrix_u = matrix_u.const_data_ptr();
    arguments.mean_u = data(optional(u.mean));
    if (matrix_v.defined()) {
      arguments.v = v.x.const_data_ptr();
      arguments.matrix_v = matrix_v.const_data_ptr();
      arguments.mean_v = data(optional(v.mean));
    }
    arguments.shift = data(shift);
    arguments.y = output(y);
    arguments.shape = shape_;
    arguments.type = type_;
    scope_.backend().batch_whitening_transform(arguments, scope_.stream());
  }

 private:
  DeviceScope scope_;
  PlaneShape shape_;
  DType type_;
  int64_t width_;
  at::TensorOptions options_;
};

}  // namespace

void update_running_whitening(const WhiteningInputs& in, const Tensor& mean, const Tensor& wm) {
  if (!in.updates() || in.x.sym_numel() == 0) return;  // of an empty batch nothing is learnt
  const auto update = [&](const Tensor& running, const Tensor& value) {
    running.mul_(1 - in.momentum)
        .add_(value.reshape_symint(running.sym_sizes()).to(running.scalar_type()), in.momentum);
  };
  update(*in.running_mean, mean);
  update(*in.running_wm, wm);
}

Whitened whitening_forward(const WhiteningInputs& in, bool statistics) {
  check_whitening(in);
  const auto method = whitening_method(in.method, in.iterations, in.eps);
  const auto x = dense(in.x);
  const Passes passes(x, in.width);
  const bool learns = in.training && x.numel() > 0;
  Tensor y = at::empty_like(x), mean, wm, decomposition;
  if (learns) {
    const auto moments = passes.moments(x);
    const auto whitening = whitening_matrix(moments.matrix, method);
    mean = moments.mean_u, wm = whitening.matrix.contiguous(), decomposition = whitening.decomposition;
  } else if (in.training) {
    mean = at::zeros({x.size(1)}, passes.options()),
    wm = at::zeros({passes.groups(), in.width, in.width}, passes.options());
  } else {
    // What backward reads must not change with the buffers.
    const auto type = passes.options().dtype().toScalarType();
    const auto copy = [&](const Tensor& t) { return t.to(type, false, /*copy=*/statistics); };
    mean = copy(*in.running_mean).reshape({x.size(1)}).contiguous(), wm = copy(*in.running_wm).contiguous();
  }
  if (!decomposition.defined()) decomposition = at::empty({passes.groups(), 0, in.width}, passes.options());
  if (x.numel() > 0) {
    const auto matrix = has(in.weight) ? passes.column(*in.weight) * wm : wm;
    passes.transform({x, matrix, mean}, {x}, passes.flat(in.bias), y);
  }
  if (learns) update_running_whitening(in, mean, wm);
  return {y, mean, wm, decomposition};
}

WhiteningGradients whitening_backward(const WhiteningInputs& in, const Tensor& grad_y_, const Tensor& mean,
                                      const Tensor& wm, const Tensor& decomposition, at::ScalarType param_dtype,
                                      WhiteningWanted wanted) {
  constexpr const char* name = "whitening_backward";
  // This op is called by the forward's node; the checks keep a direct call from reading out of bounds.
  check_whitening_shape(in.x, in.width);
  const auto method = whitening_method(in.method, in.iterations, in.eps);
  TORCH_CHECK(grad_y_.sizes() == in.x.sizes(), name, "(): the gradient must have input's shape ", in.x.sizes(),
              ", but has shape ", grad_y_.sizes());
  check_floating(name, "the gradient of the result", grad_y_.scalar_type());
  check_floating(name, "param_dtype", param_dtype);
  for (const auto* tensor : {&grad_y_, &mean, &wm, &decomposition})
    check_device(name, "what forward returned", *tensor, in.x);
  check_parameter(name, "weight", in.weight, in.x);
  const auto x = dense(in.x), grad_y = ordered_as(x, grad_y_);
  const Passes passes(x, in.width);
  const auto type = passes.options().dtype().toScalarType();
  TORCH_CHECK(mean.numel() == x.size(1) && wm.numel() == x.size(1) * in.width && mean.scalar_type() == type &&
                  wm.scalar_type() == type && (!has(in.weight) || in.weight->numel() == x.size(1)),
              name, "(): mean and wm must be what whitening_forward returned");
  WhiteningGradients results;
  auto& [grad_x, grad_weight, grad_bias] = results;
  if (wanted[0]) grad_x = at::empty_like(x);
  if (x.numel() == 0) {
    if (wanted[1]) grad_weight = at::zeros({x.size(1)}, x.options().dtype(param_dtype).memory_format(std::nullopt));
    if (wanted[2]) grad_bias = at::zeros({x.size(1)}, x.options().dtype(param_dtype).memory_format(std::nullopt));
    return results;
  }
  const auto weight = has(in.weight) ? passes.column(*in.weight) : Tensor();
  Passes::Moments moments;
  Tensor full;  // sum of grad_y (x - mean)'
  if (in.training || wanted[1] || wanted[2]) {
    moments = passes.moments(grad_y, x);
    full = moments.matrix;
    if (!in.training)
      full = full + passes.column(moments.mean_u) * (moments.mean_v - mean).reshape({passes.groups(), 1, in.width});
    full = full * passes.positions();
  }
  if (wanted[1]) grad_weight = (wm * full).sum(-1).reshape({x.size(1)}).to(param_dtype);
  if (wanted[2]) grad_bias = (moments.mean_u * passes.positions()).to(param_dtype);
  if (wanted[0]) {
    const auto matrix_u = (weight.defined() ? wm * weight : wm).transpose(-2, -1);
    Tensor matrix_v;
    if (in.training) {
      const auto grad_wm = weight.defined() ? full * weight : full;
      matrix_v = covariance_gradient(grad_wm, {wm, decomposition}, method) * (2 / passes.positions());
    }
    passes.transform({grad_y, matrix_u, in.training ? moments.mean_u : Tensor()}, {x, matrix_v, mean}, std::nullopt,
                     grad_x);
  }
  return results;
}

}  // namespace torchfastnorm::bindings
