// The CPU and CUDA kernels of the row norms: check everything, allocate the results, fill the interface's structs.
#include "row_norm.h"

#include "common/rows.h"
#include "plan_choice.h"
#include "row_norm_checks.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

namespace torchfastnorm::bindings {
namespace {

int64_t rows_in(const Tensor& tensor, int64_t dims) {
  return c10::multiply_integers(tensor.sizes().slice(0, tensor.dim() - dims));
}

}  // namespace

Four row_norm_forward(const RowNormOp& op, const RowNormInputs<at::IntArrayRef>& in, bool statistics) {
  check_inputs(op, in);
  const DeviceScope scope(in.x);
  const int64_t dims = in.shape.size(), rows = rows_in(in.x, dims), cols = c10::multiply_integers(in.shape);
  const auto options = in.x.options();
  const auto h_type = has(in.residual) ? in.residual->scalar_type() : in.x.scalar_type();
  const auto y_type = in.out_dtype.value_or(in.x.scalar_type());
  const auto param_type = common_type(in.weight, in.bias, in.x.scalar_type());

  Four results;
  auto& [y, sum, mean, rstd] = results;
  y = at::empty(in.x.sizes(), options.dtype(y_type));
  if (has(in.residual)) sum = at::empty(in.x.sizes(), options.dtype(h_type));
  if (statistics) {
    const auto lead = in.x.sizes().slice(0, in.x.dim() - dims);
    const auto statistics_options = options.dtype(statistics_type(h_type));
    if (op.centered) mean = at::empty(lead, statistics_options);
    rstd = at::empty(lead, statistics_options);
  }

  const Rows x = rows_of(in.x, dims, cols);
  const auto weight = parameter(in.weight, param_type), bias = parameter(in.bias, param_type);
  RowNormForward arguments{};
  arguments.x = x.data();
  arguments.weight = data(weight);
  arguments.bias = data(bias);
  arguments.y = output(y);
  arguments.sum = output(sum);
  arguments.mean = output(mean);
  arguments.rstd = output(rstd);
  arguments.rows = rows;
  arguments.cols = cols;
  arguments.x_layout = x.layout;
  arguments.eps = in.eps;
  arguments.x_type = dtype_of(in.x.scalar_type());
  arguments.residual_type = dtype_of(h_type);
  arguments.param_type = dtype_of(param_type);
  arguments.y_type = dtype_of(y_type);
  arguments.choice = plan_choice(PlanKernel::RowForward, in.x, {cols});
  std::optional<Rows> residual;
  if (has(in.residual)) {
    residual = rows_of(*in.residual, dims, cols);
    arguments.residual = residual->data();
    arguments.residual_layout = residual->layout;
  }
  (scope.backend().*op.forward)(arguments, scope.stream());
  return results;
}

Four row_norm_backward(const RowNormOp& op, const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h,
                       at::IntArrayRef shape, const OptTensor& weight, const OptTensor& mean, const Tensor& rstd,
                       at::ScalarType x_dtype, at::ScalarType param_dtype, Mask mask) {
  const auto [want_h, want_x, want_weight, want_bias] = mask;
  const int64_t dims = shape.size(), rows = rows_in(h, dims), cols = c10::multiply_integers(shape);
  const auto statistics = statistics_type(h.scalar_type());
  // This op is called by the forward's node; the checks keep a direct call from reading out of bounds.
  check_normalized_shape(op.name, h.sizes(), shape, op.rank_is_value);
  check_residual_shape(op.name, grad_y.sizes(), h.sizes());
  if (has(grad_sum)) check_residual_shape(op.name, grad_sum->sizes(), h.sizes());
  if (has(weight)) check_parameter_shape(op.name, "weight", weight->sizes(), shape);
  check_floating(op.name, "the gradient of the result", grad_y.scalar_type());
  check_floating(op.name, "what was normalised", h.scalar_type());
  check_floating(op.name, "x_dtype", x_dtype);
  check_floating(op.name, "param_dtype", param_dtype);
  check_device(op.name, "the gradient of the result", grad_y, h);
  if (has(grad_sum)) check_device(op.name, "the gradient of the sum", *grad_sum, h);
  if (has(weight)) check_device(op.name, "weight", *weight, h);
  if (has(mean)) check_device(op.name, "mean", *mean, h);
  check_device(op.name, "rstd", rstd, h);
  TORCH_CHECK(rstd.numel() == rows && rstd.scalar_type() == statistics && op.centered == has(mean) &&
                  (!op.centered || (mean->numel() == rows && mean->scalar_type() == statistics)),
              op.name, "_backward(): mean and rstd must be what ", op.name, "_forward returned");

  const DeviceScope scope(h);
  const auto options = h.options();
  Four results;
  auto& [grad_h, grad_x, grad_weight, grad_bias] = results;
  if (want_h) grad_h = at::empty(h.sizes(), options);
  if (want_x) grad_x = at::empty(h.sizes(), options.dtype(x_dtype));
  if (want_weight) grad_weight = at::empty(shape, options.dtype(param_dtype));
  if (want_bias) grad_bias = at::empty(shape, options.dtype(param_dtype));

  const Rows grad_y_rows = rows_of(grad_y, dims, cols), h_rows = rows_of(h, dims, cols);
  const auto param = parameter(weight, param_dtype), mean_ = parameter(mean, statistics);
  const auto rstd_ = rstd.expect_contiguous();
  RowNormBackward arguments{};
  arguments.grad_y = grad_y_rows.data();
  arguments.h = h_rows.data();
  arguments.weight = data(param);
  arguments.mean = data(mean_);
  arguments.rstd = rstd_->const_data_ptr();
  arguments.grad_h = output(grad_h);
  arguments.grad_x = output(grad_x);
  arguments.grad_weight = output(grad_weight);
  arguments.grad_bias = output(grad_bias);
  arguments.rows = rows;
  arguments.cols = cols;
  arguments.grad_y_layout = grad_y_rows.layout;
  arguments.h_layout = h_rows.layout;
  arguments.y_type = dtype_of(grad_y.scalar_type());
  arguments.h_type = dtype_of(h.scalar_type());
  arguments.x_type = dtype_of(x_dtype);
  arguments.param_type = dtype_of(param_dtype);
  arguments.choice = plan_choice(PlanKernel::RowBackward, h, {cols});
  Tensor sum_storage;
  std::optional<Rows> grad_sum_rows;
  if (has(grad_sum)) {
    sum_storage = grad_sum->to(h.scalar_type());
    grad_sum_rows = rows_of(sum_storage, dims, cols);
    arguments.grad_sum = grad_sum_rows->data();
    arguments.grad_sum_layout = grad_sum_rows->layout;
  }
  Tensor workspace;
  if (const int64_t bytes = (scope.backend().*op.backward_workspace)(arguments)) {
    workspace = at::empty({bytes}, options.dtype(at::kByte));
    arguments.workspace = output(workspace);
  }
  (scope.backend().*op.backward)(arguments, scope.stream());
  return results;
}

}  // namespace torchfastnorm::bindings
