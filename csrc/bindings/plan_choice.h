// Launch plans chosen by hand: by torchfastnorm.plan(), for whatever runs meanwhile, or by a tuning table, for the
// calls whose sizes it names. Both are set from Python and looked up by the bindings' kernels, which hand them to the
// backend.
#pragma once
#include <array>
#include <atomic>

#include "../interface/plane_norm.h"
#include "common/tensors.h"

namespace torchfastnorm::bindings {

enum class PlanKernel : int8_t { RowForward, RowBackward, PlaneForward, PlaneBackward };

// Is there anything to look up? All that a call pays where nothing has been chosen.
inline std::atomic<bool> plans_chosen{false};

// `sizes`: of a row its columns; of feature maps what plane_key makes. Never the number of rows, or of samples where
// these do not depend on each other: a tuned plan must leave results independent of the batch.
PlanChoice look_up_plan(PlanKernel kernel, at::Device device, at::ScalarType type, at::ArrayRef<int64_t> sizes);

inline PlanChoice plan_choice(PlanKernel kernel, const Tensor& tensor, at::ArrayRef<int64_t> sizes) {
  if (C10_LIKELY(!plans_chosen.load(std::memory_order_relaxed))) return {};
  return look_up_plan(kernel, tensor.device(), tensor.scalar_type(), sizes);
}

inline std::array<int64_t, 6> plane_key(Sets sets, const PlaneShape& shape) {
  return {static_cast<int64_t>(sets),
          sets == Sets::Batch ? shape.samples : 0,
          shape.channels,
          shape.spatial,
          sets == Sets::Group ? shape.groups : 0,
          static_cast<int64_t>(shape.layout)};
}

}  // namespace torchfastnorm::bindings
