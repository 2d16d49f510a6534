// The table of backward kernels of the plane norms, and the last step of grad_weight and grad_bias.
#pragma once
#include "plane_backward_first.h"
#include "plane_backward_last.h"
#include "plane_short.h"
#include "plane_switch.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

// With renorm: element i of rstd (interface/plane_norm.h), and the bias that forward applied.
inline double shift_of(const PlaneNormBackward& a, int64_t i) {
  return a.type == DType::Double ? static_cast<const double*>(a.rstd)[i] : double(static_cast<const float*>(a.rstd)[i]);
}
template <class A>
void shift_bias(const PlaneBackwardCall& call) {
  const int64_t channels = call.geometry.channels;
  A* const bias = static_cast<A*>(const_cast<void*>(call.bias));
  for (int64_t c = 0; c < channels; ++c)
    bias[c] += static_cast<const A*>(call.arguments->rstd)[channels + c] * static_cast<const A*>(call.weight)[c];
}

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
        const auto total = [&](int64_t which) {
          double sum = 0;
          for (int64_t part = 0; part < parts; ++part) sum += call.of_parts[(part * 2 + which) * channels + c];
          return sum;
        };
        double sum = total(i);
        if (i == 0 && a.renorm != Renorm::None) sum += shift_of(a, channels + c) * total(1);
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
    using Mix = SwitchBackward<Accumulator<decltype(element)>>;
    return {First::scratch,
            by_tiles ? ShortBackward<decltype(element)>::sets : First::sets,
            First::blocks,
            First::finish,
            First::pieces,
            Last::scratch,
            Last::parts,
            Last::sums,
            Last::finish,
            Last::tiles,
            parameter_gradients,
            shift_bias<Accumulator<decltype(element)>>,
            {Mix::samples, Mix::channels, Mix::planes},
            Mix::logits};
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
