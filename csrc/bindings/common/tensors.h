// Torch's types in the vocabulary of the interface: names for optional arguments, dtypes, pointers.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <limits>
#include <optional>

#include "../../interface/types.h"

namespace torchfastnorm::bindings {

using at::Tensor;
using OptTensor = std::optional<Tensor>;
using OptType = std::optional<at::ScalarType>;

inline bool is_supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

// `type` has passed check_floating (checks.h).
inline DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::Double;
    case at::kHalf:
      return DType::Half;
    case at::kBFloat16:
      return DType::BFloat16;
    default:
      return DType::Float;
  }
}

// The torch twin of accumulator_of: what statistics are kept in and what the composite formulas compute in.
inline at::ScalarType statistics_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// What eps=None means in torch: the machine epsilon of the type that is computed in.
inline double machine_epsilon(at::ScalarType type) {
  return type == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

inline bool has(const OptTensor& tensor) { return tensor.has_value() && tensor->defined(); }

inline const void* data(const OptTensor& tensor) { return has(tensor) ? tensor->const_data_ptr() : nullptr; }

// A pointer to write to; null for an output that was not wanted.
inline void* output(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

inline OptTensor optional(const Tensor& tensor) { return tensor.defined() ? OptTensor(tensor) : std::nullopt; }

// Where two dtypes meet at one interface field (weight and bias): the wider, float for half with bfloat16.
inline at::ScalarType common_type(const OptTensor& a, const OptTensor& b, at::ScalarType otherwise) {
  if (has(a) && has(b)) return c10::promoteTypes(a->scalar_type(), b->scalar_type());
  return has(a) ? a->scalar_type() : has(b) ? b->scalar_type() : otherwise;
}

// A parameter as the interface wants it: contiguous and of that dtype. Shares storage where it already is.
inline OptTensor parameter(const OptTensor& tensor, at::ScalarType type) {
  if (!has(tensor)) return std::nullopt;
  if (tensor->scalar_type() == type && tensor->is_contiguous()) return tensor;
  return tensor->to(type).contiguous();
}

}  // namespace torchfastnorm::bindings
