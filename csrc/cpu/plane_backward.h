// The table of backward kernels of the plane norms, and the last step of grad_weight and grad_bias.
#pragma once
#include "plane_backward_first.h"
#include "plane_backward_last.h"
#include "plane_short.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// The sums over the parts, in order.
inline void parameter_gradients(const PlaneBackwardCall& call) {
  const PlaneNormBackward& a = *call.arguments;
  const int64_t channels = call.geometry.channels, parts = slab_parts(call.geometry);
  void* const gradients[2] = {a.grad_weight, a.grad_bias};
  for (int i = 0; i < 2; ++i) {
    if (!gradients[i]) continue;
    by_type(a.param_type, [&](auto element) {
      using P = decltype(element);
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += call.of_parts[(part * 2 + i) * channels + c];
        from_double(static_cast<P*>(gradients[i]) + c, sum);
      }
    });
  }
}

inline PlaneBackwardKernels plane_backward_kernels(const PlaneBackwardCall& call) {
  return by_type(call.arguments->type, [&](auto element) -> PlaneBackwardKernels {
    const bool by_tiles = short_planes(call.geometry, call.arguments->mask);
    using First = FirstBackward<decltype(element)>;
    using Last = LastBackward<decltype(element)>;
    return {by_tiles ? ShortBackward<decltype(element)>::sets : First::sets,
            First::blocks,
            First::finish,
            First::pieces,
            Last::scratch,
            Last::parts,
            Last::sums,
            Last::finish,
            Last::tiles,
            parameter_gradients};
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
