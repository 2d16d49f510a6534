// The checks of a row norm's arguments, for the kernels (sizes are numbers) and the composite formulas (may be
// symbols).
#pragma once
#include "common/checks.h"
#include "row_norm.h"

namespace torchfastnorm::bindings {

template <class Shape>
void check_inputs(const RowNormOp& op, const RowNormInputs<Shape>& in) {
  const auto sizes = [](const Tensor& tensor) -> Shape {
    if constexpr (std::is_same_v<Shape, at::IntArrayRef>)
      return tensor.sizes();
    else
      return tensor.sym_sizes();
  };
  const char* name = has(in.residual) ? op.add_name : op.name;
  check_normalized_shape(name, sizes(in.x), in.shape, op.rank_is_value);
  if (has(in.weight)) check_parameter_shape(name, "weight", sizes(*in.weight), in.shape);
  if (has(in.bias)) check_parameter_shape(name, "bias", sizes(*in.bias), in.shape);
  check_floating(name, "input", in.x.scalar_type());
  check_parameter(name, "weight", in.weight, in.x);
  check_parameter(name, "bias", in.bias, in.x);
  if (in.out_dtype) check_floating(name, "out_dtype", *in.out_dtype);
  if (has(in.residual)) {
    check_residual_shape(name, sizes(*in.residual), sizes(in.x));
    check_floating(name, "residual", in.residual->scalar_type());
    check_device(name, "residual", *in.residual, in.x);
  }
}

}  // namespace torchfastnorm::bindings
