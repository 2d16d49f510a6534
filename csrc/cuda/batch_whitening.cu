// Whitening on CUDA devices: its two passes over feature maps (interface/batch_whitening.h).
#include <stdexcept>

#include "../interface/batch_whitening.h"
#include "../interface/whitening_plan.h"
#include "whitening_moments.cuh"
#include "whitening_transform.cuh"

namespace torchfastnorm::cuda {
namespace {

constexpr int64_t limit = int64_t(1) << 31;

WhiteningPlan plan_of(const WhiteningMoments& a) {
  return plan_whitening_moments({a.shape, a.type, a.v != a.u}, device_limits());
}
WhiteningPlan plan_of(const WhiteningTransform& a) {
  return plan_whitening_transform({a.shape, a.type, a.v != nullptr}, device_limits());
}

WhiteningGeometry geometry_of(const PlaneShape& shape, const WhiteningPlan& plan, DType type) {
  const int64_t size = size_of(type), vector = 16 / size;
  const bool planes = plan.layout == Layout::ChannelsFirst;
  const int64_t plane_vectors = (shape.spatial + vector - 1) / vector, width = shape.channels / shape.groups;
  // Some room, so that no sum of a position and a panel's size overflows either.
  if (shape.channels >= limit || plan.panels >= limit - 1024 || plan.blocks >= limit || plan.finish_blocks >= limit ||
      (planes && (shape.spatial >= limit - 1024 || shape.samples * plane_vectors >= limit - 1024)))
    throw std::runtime_error(
        "torchfastnorm: 2^31 or more vectors of 16 bytes of one channel in one call; split the batch");
  WhiteningGeometry g{};
  g.positions = shape.samples * shape.spatial;
  g.spatial = planes ? int(shape.spatial) : 1;
  g.channels = int(shape.channels);
  g.width = int(width);
  g.span = int(plan.bundle * width);
  g.bundles = uint32_t(plan.bundles);
  g.tiles = uint32_t(plan.tiles);
  g.panels = uint32_t(plan.panels);
  g.vectors = planes ? uint32_t(shape.samples * plane_vectors) : 0;
  g.plane_vectors = Divisor(planes ? uint32_t(plane_vectors) : 1);
  g.width_divisor = Divisor(uint32_t(width));
  g.aligned = planes ? shape.spatial * size % 16 == 0
                     : shape.channels * size % 16 == 0 && (plan.bundles == 1 || g.span * size % 16 == 0);
  return g;
}

LaunchConfig config_of(const WhiteningPlan& plan, const char* name) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.smem = size_t(plan.shared_bytes);
  config.name = name;
  return config;
}

// Calls f(null pointer of the element type, integral_constant of the layout, of the tile).
template <class F>
void with_kernel(DType type, const WhiteningPlan& plan, F f) {
  with_type(type, [&](auto* element) {
    const auto with_tile = [&](auto layout) {
      if (plan.tile == narrow_tile) return f(element, layout, std::integral_constant<int, narrow_tile>());
      return f(element, layout, std::integral_constant<int, wide_tile>());
    };
    if (plan.layout == Layout::ChannelsFirst) return with_tile(std::integral_constant<Layout, Layout::ChannelsFirst>());
    return with_tile(std::integral_constant<Layout, Layout::ChannelsLast>());
  });
}

}  // namespace

int64_t batch_whitening_moments_workspace(const WhiteningMoments& a) { return plan_of(a).partial_bytes; }

void batch_whitening_moments(const WhiteningMoments& a, Stream stream) {
  const WhiteningPlan plan = plan_of(a);
  with_kernel(a.type, plan, [&](auto* element, auto layout, auto tile) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = Accumulator<T>;
    constexpr Layout LAYOUT = decltype(layout)::value;
    constexpr int TILE = decltype(tile)::value;
    WhiteningMomentsArguments<A> arguments{};
    arguments.geometry = geometry_of(a.shape, plan, a.type);
    arguments.u = a.u;
    arguments.v = a.v == a.u ? nullptr : a.v;
    arguments.records = static_cast<A*>(a.workspace);
    arguments.mean_u = static_cast<A*>(a.mean_u);
    arguments.mean_v = static_cast<A*>(a.mean_v);
    arguments.moments = static_cast<A*>(a.moments);
    arguments.slab = uint32_t(plan.slab);
    arguments.slabs = uint32_t(plan.slabs);
    arguments.pairs = uint32_t(plan.pairs);
    arguments.bundle_groups = int(plan.bundle);
    launch(whitening_moments<T, LAYOUT, TILE>, config_of(plan, "whitening_moments"), static_cast<cudaStream_t>(stream),
           arguments);
    LaunchConfig config;
    config.grid = dim3(unsigned(plan.finish_blocks));
    config.block = dim3(unsigned(plan.finish_threads));
    config.name = "whitening_finish";
    launch(whitening_finish<A, TILE>, config, static_cast<cudaStream_t>(stream), arguments);
  });
}

void batch_whitening_transform(const WhiteningTransform& a, Stream stream) {
  const WhiteningPlan plan = plan_of(a);
  with_kernel(a.type, plan, [&](auto* element, auto layout, auto tile) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = Accumulator<T>;
    WhiteningTransformArguments<A> arguments{};
    arguments.geometry = geometry_of(a.shape, plan, a.type);
    arguments.tensors[0] = a.u, arguments.tensors[1] = a.v;
    arguments.matrices[0] = static_cast<const A*>(a.matrix_u),
    arguments.matrices[1] = static_cast<const A*>(a.matrix_v);
    arguments.means[0] = static_cast<const A*>(a.mean_u), arguments.means[1] = static_cast<const A*>(a.mean_v);
    arguments.shift = static_cast<const A*>(a.shift);
    arguments.y = a.y;
    arguments.strides = uint32_t(plan.strides);
    arguments.bundle_groups = int(plan.bundle);
    launch(whitening_transform<T, decltype(layout)::value, decltype(tile)::value>,
           config_of(plan, "whitening_transform"), static_cast<cudaStream_t>(stream), arguments);
  });
}

}  // namespace torchfastnorm::cuda
