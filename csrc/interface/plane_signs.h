// A ReLU and a leaky ReLU are differentiated by the sign of their argument. Where a residual goes into it, forward
// keeps the signs for backward, which then reads one bit in place of an element of the residual:
//
//   1 where the argument is positive, 0 where it is not, or a NaN
//
// A run (a plane; with Layout::ChannelsLast or spatial 1 the channels of one position) has a byte for each 16 bytes of
// x, the last one for what is left; a byte's first element is its lowest bit.
//
//      float, runs of 10 elements      byte 0: elements 0..3      byte 1: 4..7      byte 2: 8, 9      byte 3: next run
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {

// (With spatial 1 the sets of samples would be taken by planes, whose signs have a byte each.)
constexpr bool keeps_signs(Sets sets, const PlaneShape& shape, bool residual, Activation activation) {
  return residual && (activation == Activation::Relu || activation == Activation::LeakyRelu) &&
         (shape.spatial != 1 || sets == Sets::Batch);
}

constexpr bool signs_by_planes(const PlaneShape& shape) {
  return shape.layout == Layout::ChannelsFirst && shape.spatial > 1;
}
constexpr int64_t sign_runs(const PlaneShape& shape) {
  return shape.samples * (signs_by_planes(shape) ? shape.channels : shape.spatial);
}
// Bytes of `elements` elements of a run, its first ones.
constexpr int64_t sign_bytes(int64_t elements, DType type) { return (elements * size_of(type) + 15) / 16; }
constexpr int64_t sign_run(const PlaneShape& shape, DType type) {
  return sign_bytes(signs_by_planes(shape) ? shape.spatial : shape.channels, type);
}
// All of them, and a few that are read together with the last ones and not looked at.
constexpr int64_t sign_bytes(const PlaneShape& shape, DType type) {
  return sign_runs(shape) * sign_run(shape, type) + 3;
}

}  // namespace torchfastnorm
