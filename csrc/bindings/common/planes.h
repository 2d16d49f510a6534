// A feature map as the planes that a backend reads: contiguous as (samples, channels, spatial), or as (samples,
// spatial, channels), which is channels_last in two and three dimensions and a transposed tensor in one. Anything else
// is copied into the layout that torch suggests for it.
#pragma once
#include "../../interface/plane_norm.h"
#include "tensors.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/ops/empty_like.h>

namespace torchfastnorm::bindings {

// Dimensions of size one have no say: their stride is arbitrary.
inline bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t expected = 1;
  const auto follows = [&](int64_t d) {
    const bool fits = sizes[d] == 1 || strides[d] == expected;
    expected *= sizes[d];
    return fits;
  };
  bool last = tensor.dim() > 1 && follows(1);
  for (auto d = tensor.dim() - 1; last && d > 1; --d) last = follows(d);
  return last && follows(0);
}

// `tensor` itself, or its copy in a layout that backends read. Fake kernels repeat this (dense in _plane_norm.py).
inline Tensor dense(const Tensor& tensor) {
  if (tensor.dim() == 4 || tensor.dim() == 5) {
    const auto format = tensor.suggest_memory_format();
    return tensor.is_contiguous(format) ? tensor : tensor.contiguous(format);
  }
  return tensor.is_contiguous() || is_channels_last(tensor) ? tensor : tensor.contiguous();
}

// `dense` as a shape. Where both layouts are the same memory it says the one that suits: rows of channels if there are
// no spatial dimensions.
inline PlaneShape plane_shape(const Tensor& dense, int64_t groups) {
  const auto sizes = dense.sizes();
  PlaneShape shape{1, 0, 1, groups, Layout::ChannelsLast};
  if (sizes.size() > 0) shape.samples = sizes[0];
  if (sizes.size() > 1) shape.channels = sizes[1];
  for (size_t d = 2; d < sizes.size(); ++d) shape.spatial *= sizes[d];
  if (shape.spatial != 1 && dense.is_contiguous()) shape.layout = Layout::ChannelsFirst;
  return shape;
}

// A tensor of dense's shape, with dense's dtype and order of elements: itself, or a copy.
inline Tensor ordered_as(const Tensor& dense, const Tensor& tensor) {
  const bool same_type = tensor.scalar_type() == dense.scalar_type();
  if (same_type && dense.is_contiguous() && tensor.is_contiguous()) return tensor;
  if (same_type && is_channels_last(dense) && is_channels_last(tensor)) return tensor;
  return at::empty_like(dense).copy_(tensor);
}

// A mask that broadcasts to (N, 1, spatial...) as bytes of (samples, spatial).
inline OptTensor mask_of_planes(const OptTensor& mask, const Tensor& x) {
  if (!has(mask)) return std::nullopt;
  auto sizes = x.sizes().vec();
  if (sizes.size() > 1) sizes[1] = 1;
  return mask->expand(sizes).contiguous();
}

}  // namespace torchfastnorm::bindings
