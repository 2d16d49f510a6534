// The table of forward kernels of the plane norms, and the running statistics.
#pragma once
#include "plane_forward_first.h"
#include "plane_forward_last.h"
#include "plane_short.h"
#include "plane_switch.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

template <class A>
void running_statistics(const PlaneForwardCall& call) {
  const PlaneNormForward& a = *call.arguments;
  for (int64_t c = 0; c < call.geometry.channels; ++c) {
    const Running<double> running = running_of(a, c);
    static_cast<A*>(call.mean)[c] = A(running.mean);
    static_cast<A*>(call.rstd)[c] = A(running_rstd(a.renorm, running.var, a.eps));
  }
}

// Of the channels [begin, end), from their sets' moments, averaged over the slabs.
inline void update_running(const PlaneForwardCall& call, double momentum, int64_t begin, int64_t end) {
  const PlaneNormForward& a = *call.arguments;
  const PlaneGeometry& g = call.geometry;
  by_type(a.running_type, [&](auto element) {
    using R = decltype(element);
    R* const running_mean = static_cast<R*>(a.running_mean);
    R* const running_var = static_cast<R*>(a.running_var);
    for (int64_t c = begin; c < end; ++c) {
      double mean = 0, variance = 0;
      for (int64_t slab = 0; slab < g.slabs; ++slab) {
        const Moments& m = call.of_sets[slab * g.channels + c];
        const double unbiased = m.squares / (m.count > 2 ? m.count - 1 : 1);
        mean += m.mean;
        variance += a.renorm == Renorm::None
                        ? unbiased
                        : running_target(a.renorm, variance_of(m), unbiased, double(a.shape.samples), a.eps);
      }
      const double share = momentum / double(g.slabs);
      from_double(running_mean + c, (1 - momentum) * to_double(running_mean + c) + share * mean);
      from_double(running_var + c, (1 - momentum) * to_double(running_var + c) + share * variance);
    }
  });
}

inline PlaneForwardKernels plane_forward_kernels(const PlaneForwardCall& call) {
  return by_type(call.arguments->type, [&](auto element) -> PlaneForwardKernels {
    using T = decltype(element);
    const bool by_tiles = short_planes(call.geometry, call.arguments->mask);
    using First = FirstForward<T>;
    using Last = LastForward<T>;
    using Mix = SwitchForward<Accumulator<T>>;
    return {running_statistics<Accumulator<T>>,
            update_running,
            by_tiles ? ShortForward<T>::sets : First::sets,
            First::moments,
            First::finish,
            by_tiles && !First::goes_past(call) ? ShortForward<T>::pieces : First::pieces,
            Last::scratch,
            Last::slabs,
            Last::moments,
            Last::finish,
            Last::tiles,
            {Mix::samples, Mix::channels, Mix::planes}};
  });
}

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
