// A tensor as the rows that a backend reads: pointer and RowLayout, without a copy wherever three levels of strides
// describe it (a slice of a fused QKV projection, a transpose of sequence and head, an expanded batch).
#pragma once
#include <c10/util/MaybeOwned.h>

#include "tensors.h"

namespace torchfastnorm::bindings {

struct Rows {
  c10::MaybeOwned<Tensor> tensor;  // the caller's tensor, or the contiguous copy
  RowLayout layout;
  const void* data() const { return tensor->const_data_ptr(); }
};

// The leading dimensions of `tensor`, all but the last `dims`, as a RowLayout; nothing when a row is not contiguous
// or more than three levels remain after merging, or there are too many rows for more than one (RowLayout's limit).
// Dimensions of size one have no say: their stride is arbitrary.
inline std::optional<RowLayout> row_layout(const Tensor& tensor, int64_t dims) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const auto lead = tensor.dim() - dims;
  int64_t cols = 1;
  for (auto d = tensor.dim() - 1; d >= lead; --d) {
    if (sizes[d] != 1 && strides[d] != cols) return std::nullopt;
    cols *= sizes[d];
  }
  struct Level {
    int64_t size = 1, stride = 0;
  } levels[3];
  int count = 0;
  for (auto d = lead - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (count > 0 && strides[d] == levels[count - 1].size * levels[count - 1].stride) {
      levels[count - 1].size *= sizes[d];
    } else if (count < 3) {
      levels[count++] = {sizes[d], strides[d]};
    } else {
      return std::nullopt;
    }
  }
  if (count <= 1) return RowLayout{1, 1, levels[0].stride, 0, 0};
  if (tensor.numel() / cols >= int64_t(1) << 31) return std::nullopt;
  if (count == 2) return RowLayout{1, levels[0].size, levels[1].stride, 0, levels[0].stride};
  return RowLayout{levels[1].size, levels[0].size, levels[2].stride, levels[1].stride, levels[0].stride};
}

inline Rows rows_of(const Tensor& tensor, int64_t dims, int64_t cols) {
  const RowLayout contiguous{1, 1, cols, 0, 0};
  if (tensor.is_contiguous()) return {c10::MaybeOwned<Tensor>::borrowed(tensor), contiguous};
  if (tensor.numel() > 0)
    if (auto layout = row_layout(tensor, dims)) return {c10::MaybeOwned<Tensor>::borrowed(tensor), *layout};
  return {c10::MaybeOwned<Tensor>::owned(tensor.contiguous()), contiguous};
}

}  // namespace torchfastnorm::bindings
