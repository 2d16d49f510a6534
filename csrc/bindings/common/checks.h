// Checks of arguments. Every message names the op, the argument and its value, and says what to do; exception types
// are torch.nn.functional's (RuntimeError for shapes, devices and parameters, NotImplementedError for the dtype of
// input). All of them run before anything is allocated or written.
#pragma once
#include <c10/util/Exception.h>

#include "tensors.h"

namespace torchfastnorm::bindings {

inline void check_floating(const char* op, const char* argument, at::ScalarType type) {
  TORCH_CHECK_NOT_IMPLEMENTED(is_supported(type), op, "(): ", argument, " of dtype ", type, " is not implemented; use ",
                              "torch.float32, torch.float64, torch.float16 or torch.bfloat16");
}

inline void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), op, "(): expected all tensors to be on the same device, but ",
              argument, " is on ", tensor.device(), " and input on ", input.device(), "; move one with .to(device)");
}

inline void check_parameter(const char* op, const char* argument, const OptTensor& parameter, const Tensor& input) {
  if (!has(parameter)) return;
  TORCH_CHECK(is_supported(parameter->scalar_type()), op, "(): expected ", argument, " of a floating dtype, but got ",
              parameter->scalar_type(), "; convert it to torch.float32, torch.float64, torch.float16 or ",
              "torch.bfloat16");
  check_device(op, argument, *parameter, input);
}

// The first words of the shape messages follow torch's, so that code which matches on them goes on working.
// Sizes is at::IntArrayRef, or c10::SymIntArrayRef while tracing (comparing guards, as it must).
template <class Sizes>
void check_parameter_shape(const char* op, const char* argument, const Sizes& sizes, const Sizes& normalized_shape) {
  TORCH_CHECK(sizes == normalized_shape, "Expected ", argument, " to be of same shape as normalized_shape, but got ",
              argument, " of shape ", sizes, " and normalized_shape = ", normalized_shape, " in ", op,
              "(); reshape it, or pass the matching normalized_shape");
}

// `rank_is_value` : too few dimensions are a ValueError (torch's rms_norm), else a RuntimeError (its layer_norm).
template <class Sizes>
void check_normalized_shape(const char* op, const Sizes& sizes, const Sizes& normalized_shape, bool rank_is_value) {
  const auto rank = normalized_shape.size();
  TORCH_CHECK(rank > 0, "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one ",
              "element, but got normalized_shape = [] in ", op, "(); pass the sizes of the trailing dimensions");
  if (rank_is_value)
    TORCH_CHECK_VALUE(sizes.size() >= rank, op, "(): input must have at least ", rank,
                      " dimensions for normalized_shape=", normalized_shape, ", but has shape ", sizes,
                      "; pass the sizes of input's trailing dimensions");
  TORCH_CHECK(sizes.size() >= rank && sizes.slice(sizes.size() - rank) == normalized_shape,
              "Given normalized_shape=", normalized_shape,
              ", expected input to have these trailing dimensions, but got ", "input of shape ", sizes, " in ", op,
              "(); pass the sizes of input's trailing dimensions");
}

template <class Sizes>
void check_residual_shape(const char* op, const Sizes& residual, const Sizes& input) {
  TORCH_CHECK(residual == input, op, "(): residual must have input's shape ", input, ", but has shape ", residual,
              "; expand or reshape it before the call");
}

}  // namespace torchfastnorm::bindings
