// The CPU and CUDA kernels of the plane norms: check everything, allocate the results, fill the interface's structs.
#include "plane_norm.h"

#include "../interface/plane_signs.h"
#include "common/checks.h"
#include "common/planes.h"
#include "plan_choice.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace torchfastnorm::bindings {
namespace {

constexpr PlaneNormOp ops[] = {
    {"batch_norm", "BatchNormBackward", &Backend::batch_norm_forward_workspace, &Backend::batch_norm_forward,
     &Backend::batch_norm_backward_workspace, &Backend::batch_norm_backward},
    {"group_norm", "GroupNormBackward", &Backend::group_norm_forward_workspace, &Backend::group_norm_forward,
     &Backend::group_norm_backward_workspace, &Backend::group_norm_backward},
    {"instance_norm", "InstanceNormBackward", &Backend::instance_norm_forward_workspace,
     &Backend::instance_norm_forward, &Backend::instance_norm_backward_workspace, &Backend::instance_norm_backward},
    {"batch_renorm", "BatchRenormBackward", &Backend::batch_renorm_forward_workspace, &Backend::batch_renorm_forward,
     &Backend::batch_renorm_backward_workspace, &Backend::batch_renorm_backward},
    {"switch_norm", "SwitchNormBackward", &Backend::switch_norm_forward_workspace, &Backend::switch_norm_forward,
     &Backend::switch_norm_backward_workspace, &Backend::switch_norm_backward}};

// running_mean and running_var as the backend takes them, contiguous and of one dtype: themselves, or stand-ins whose
// values store() carries over. A negative momentum, which to the backend means the cumulative average, is torch's to
// compute with: the stand-ins then receive the statistics of this batch.
class RunningStatistics {
 public:
  RunningStatistics(const PlaneNormInputs& in, PlaneNormForward& arguments)
      : updates_(in.updates()), factor_(in.momentum.value_or(-1)), buffers_{in.running_mean, in.running_var} {
    own_factor_ = updates_ && in.momentum && factor_ < 0 && !in.switchable();
    arguments.momentum = own_factor_ ? 1 : factor_;
    if (updates_ && has(in.batches)) {
      bump(*in.batches);
      arguments.batches = in.batches->mutable_data_ptr<int64_t>();
      if (in.renorms() && in.x.numel() > 0) raised_ = *in.batches;
    }
    // Of an empty batch nothing is learnt, as in torch.
    if (!has(buffers_[0]) || (in.batch_statistics && in.x.numel() == 0)) {
      updates_ = false;
      return;
    }
    const auto type =
        own_factor_ ? statistics_type(in.x.scalar_type()) : common_type(buffers_[0], buffers_[1], at::kFloat);
    for (int i = 0; i < 2; ++i) {
      if (updates_) bump(*buffers_[i]);
      given_[i] =
          own_factor_ ? at::zeros(buffers_[i]->sizes(), in.x.options().dtype(type)) : *parameter(buffers_[i], type);
    }
    arguments.running_mean = pointer(given_[0]);
    arguments.running_var = pointer(given_[1]);
    arguments.running_type = dtype_of(type);
  }

  void store() const {
    if (raised_.defined()) raised_.add_(1);
    for (int i = 0; updates_ && i < 2; ++i) {
      if (own_factor_)
        buffers_[i]->mul_(1 - factor_).add_(given_[i], factor_);
      else if (!given_[i].is_same(*buffers_[i]))
        buffers_[i]->copy_(given_[i]);
    }
  }

 private:
  // In-place work that autograd must see: what was saved for a backward is no longer what it was.
  static void bump(const Tensor& tensor) { tensor.unsafeGetTensorImpl()->bump_version(); }
  void* pointer(const Tensor& tensor) const {
    return updates_ ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  }

  bool updates_, own_factor_;
  double factor_;
  const OptTensor buffers_[2];
  Tensor given_[2];
  Tensor raised_;  // the number of batches, where the kernel only reads it
};

// The logits, for as long as a call lasts.
struct Logits {
  at::ScalarType type;
  OptTensor of_mean, of_var;

  explicit Logits(const PlaneNormInputs& in)
      : type(common_type(in.mean_weight, in.var_weight, at::kFloat)),
        of_mean(parameter(in.mean_weight, type)),
        of_var(parameter(in.var_weight, type)) {}
  Switch mix(const PlaneNormInputs& in) const {
    if (!in.switchable()) return {};
    return {switch_terms_of(in), !in.batch_statistics, in.moving_average, in.x.dim() == 2 && of_mean->numel() == 2,
            dtype_of(type),      data(of_mean),        data(of_var)};
  }
};
// How long mean is (interface/plane_norm.h).
int64_t statistics_of(const PlaneNormInputs& in, const PlaneShape& shape) {
  const int64_t sets = sets_of(in.sets_in_kernel(), shape);
  return in.switchable() ? 2 * sets + shape.samples + shape.channels : sets;
}

const uint8_t* bytes(const OptTensor& mask) { return static_cast<const uint8_t*>(data(mask)); }

template <class Arguments>
Tensor provide_workspace(int64_t bytes, const Tensor& x, Arguments& arguments) {
  if (bytes == 0) return {};
  auto workspace = at::empty({bytes}, x.options().dtype(at::kByte));
  arguments.workspace = output(workspace);
  return workspace;
}

}  // namespace

const PlaneNormOp& plane_norm_op(Sets sets, bool renorms, bool switchable) {
  return ops[switchable ? 4 : renorms ? 3 : static_cast<int>(sets)];
}

Results plane_norm_forward(const PlaneNormInputs& in, bool statistics) {
  check_inputs(in);
  const DeviceScope scope(in.x);
  const auto& op = in.op();
  const auto x = dense(in.x);
  const auto param_type = common_type(in.weight, in.bias, x.scalar_type());
  const auto weight = parameter(in.weight, param_type), bias = parameter(in.bias, param_type);
  const auto mask = mask_of_planes(in.mask, x);
  const auto residual = has(in.residual) ? OptTensor(ordered_as(x, *in.residual)) : std::nullopt;
  const Logits logits(in);

  PlaneNormForward arguments{};
  arguments.shape = plane_shape(x, in.groups);
  Results results;
  auto& [y, mean, rstd, signs] = results;
  y = at::empty_like(x);
  if (statistics || in.switchable()) {
    const auto options = x.options().dtype(statistics_type(x.scalar_type()));
    const auto size = statistics_of(in, arguments.shape);
    mean = at::empty({size}, options);
    rstd = at::empty({in.corrects() ? renormed_values * size : size}, options);
    if (in.corrects() && x.numel() == 0) rstd.zero_();  // its kernel does not correct
    if (in.switchable() && x.numel() == 0) {
      mean.zero_(), rstd.zero_();
      return results;
    }
  }
  arguments.activation = activation_named(in.name(), in.activation);
  arguments.type = dtype_of(x.scalar_type());
  if (statistics && keeps_signs(in.sets_in_kernel(), arguments.shape, has(residual), arguments.activation))
    signs = at::empty({sign_bytes(arguments.shape, arguments.type)}, x.options().dtype(at::kByte));
  arguments.x = x.const_data_ptr();
  arguments.residual = data(residual);
  arguments.weight = data(weight);
  arguments.bias = data(bias);
  arguments.mask = bytes(mask);
  arguments.y = output(y);
  arguments.signs = static_cast<uint8_t*>(output(signs));
  arguments.mean = output(mean);
  arguments.rstd = output(rstd);
  arguments.eps = in.eps;
  arguments.batch_statistics = in.batch_statistics || in.switchable();
  arguments.mix = logits.mix(in);
  arguments.renorm = in.batch_statistics && x.numel() == 0 ? Renorm::None : renorm_named(in.name(), in.renorm);
  arguments.bounds = in.bounds;
  arguments.param_type = dtype_of(param_type);
  arguments.choice = plan_choice(PlanKernel::PlaneForward, x, plane_key(in.sets_in_kernel(), arguments.shape));
  const RunningStatistics running(in, arguments);
  const auto workspace = provide_workspace((scope.backend().*op.forward_workspace)(arguments), x, arguments);
  (scope.backend().*op.forward)(arguments, scope.stream());
  running.store();
  return results;
}

Gradients plane_norm_backward(const PlaneNormInputs& in, const Tensor& grad_y_, const Tensor& mean_,
                              const Tensor& rstd_, at::ScalarType param_dtype, Wanted wanted) {
  const auto* name = in.name();
  const auto& op = in.op();
  // This op is called by the forward's node; the checks keep a direct call from reading out of bounds.
  check_tensors(in);
  TORCH_CHECK(grad_y_.sizes() == in.x.sizes(), name, "_backward(): the gradient must have input's shape ", in.x.sizes(),
              ", but has shape ", grad_y_.sizes());
  check_floating(name, "the gradient of the result", grad_y_.scalar_type());
  check_floating(name, "param_dtype", param_dtype);
  check_device(name, "the gradient of the result", grad_y_, in.x);
  check_device(name, "mean", mean_, in.x);
  check_device(name, "rstd", rstd_, in.x);
  if (has(in.signs)) check_device(name, "signs", *in.signs, in.x);
  const DeviceScope scope(in.x);
  const auto x = dense(in.x), grad_y = ordered_as(x, grad_y_);
  const auto weight = parameter(in.weight, param_dtype), bias = parameter(in.bias, param_dtype);
  const auto mask = mask_of_planes(in.mask, x);
  const auto residual = has(in.residual) ? OptTensor(ordered_as(x, *in.residual)) : std::nullopt;
  const auto mean = mean_.expect_contiguous(), rstd = rstd_.expect_contiguous();
  const Logits logits(in);

  PlaneNormBackward arguments{};
  arguments.shape = plane_shape(x, in.groups);
  const auto size = statistics_of(in, arguments.shape);
  const auto type = statistics_type(x.scalar_type());
  TORCH_CHECK(mean->numel() == size && rstd->numel() == (in.corrects() ? renormed_values * size : size) &&
                  mean->scalar_type() == type && rstd->scalar_type() == type,
              name, "_backward(): mean and rstd must be what plane_norm_forward returned");
  arguments.type = dtype_of(x.scalar_type());
  arguments.activation = activation_named(name, in.activation);
  TORCH_CHECK(!has(in.signs) || (keeps_signs(in.sets_in_kernel(), arguments.shape, true, arguments.activation) &&
                                 in.signs->is_contiguous() && in.signs->scalar_type() == at::kByte &&
                                 in.signs->numel() == sign_bytes(arguments.shape, arguments.type)),
              name, "_backward(): signs must be what plane_norm_forward returned");
  Gradients results;
  auto& [grad_x, grad_residual, grad_weight, grad_bias, grad_mean_logits, grad_var_logits] = results;
  const auto param_options = x.options().dtype(param_dtype);
  if (wanted[0]) grad_x = at::empty_like(x);
  if (wanted[1]) grad_residual = at::empty_like(x);
  if (wanted[2]) grad_weight = at::empty({arguments.shape.channels}, param_options);
  if (wanted[3]) grad_bias = at::empty({arguments.shape.channels}, param_options);
  if (in.switchable() && wanted[4]) grad_mean_logits = at::empty_like(*logits.of_mean);
  if (in.switchable() && wanted[5]) grad_var_logits = at::empty_like(*logits.of_var);
  if (in.switchable() && x.numel() == 0) {
    for (const auto* t : {&grad_weight, &grad_bias, &grad_mean_logits, &grad_var_logits})
      if (t->defined()) t->zero_();
    return results;
  }
  arguments.grad_y = grad_y.const_data_ptr();
  arguments.x = x.const_data_ptr();
  arguments.residual = data(residual);
  arguments.signs = bytes(in.signs);
  arguments.weight = data(weight);
  arguments.bias = data(bias);
  arguments.mask = bytes(mask);
  arguments.mean = mean->const_data_ptr();
  arguments.rstd = rstd->const_data_ptr();
  arguments.grad_x = output(grad_x);
  arguments.grad_residual = output(grad_residual);
  arguments.grad_weight = output(grad_weight);
  arguments.grad_bias = output(grad_bias);
  arguments.grad_mean_logits = output(grad_mean_logits);
  arguments.grad_var_logits = output(grad_var_logits);
  arguments.batch_statistics = in.batch_statistics || in.switchable();
  arguments.mix = logits.mix(in);
  arguments.renorm = in.corrects() && x.numel() > 0 ? renorm_named(name, in.renorm) : Renorm::None;
  arguments.param_type = dtype_of(param_dtype);
  arguments.choice = plan_choice(PlanKernel::PlaneBackward, x, plane_key(in.sets_in_kernel(), arguments.shape));
  const auto workspace = provide_workspace((scope.backend().*op.backward_workspace)(arguments), x, arguments);
  (scope.backend().*op.backward)(arguments, scope.stream());
  if (grad_mean_logits.defined()) grad_mean_logits = grad_mean_logits.to(in.mean_weight->scalar_type());
  if (grad_var_logits.defined()) grad_var_logits = grad_var_logits.to(in.var_weight->scalar_type());
  return results;
}

}  // namespace torchfastnorm::bindings
