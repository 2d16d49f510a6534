// From the interface's structs and a plan to a launch: what forward and backward of the plane kernels do alike.
#pragma once
#include <stdexcept>

#include "../interface/plane_plan.h"
#include "common/port.h"
#include "plane_norm.cuh"

namespace torchfastnorm::cuda {

inline bool is_empty(const PlaneShape& shape) {
  return shape.samples == 0 || shape.channels == 0 || shape.spatial == 0;
}

inline PlaneGeometry geometry_of(const PlaneShape& shape, Sets sets, const PlanePlan& plan, DType type, int kept,
                                 int staged) {
  const bool planes = plan.layout == Layout::ChannelsFirst, batch = sets == Sets::Batch;
  const int64_t size = size_of(type);
  if (!planes && plan.slab * shape.channels >= int64_t(1) << 31)
    throw std::runtime_error("torchfastnorm: too many channels for channels_last; use contiguous tensors");
  if (sets_of(sets, shape) >= int64_t(1) << 31 || (planes && plan.entries >= int64_t(1) << 31) ||
      plan.tasks >= int64_t(1) << 31 || plan.slabs >= int64_t(1) << 31)
    throw std::runtime_error("torchfastnorm: 2^31 or more planes of a few elements each in one call; split the batch");
  PlaneGeometry g{};
  g.sets = sets;
  g.samples = shape.samples;
  g.spatial = shape.spatial;
  g.channels = int(shape.channels);
  g.width = int(channels_per_set(sets, shape));
  g.set_count = sets_of(sets, shape);
  g.channels_divisor = Divisor(uint32_t(g.channels));
  g.width_divisor = Divisor(uint32_t(g.width));
  g.lanes = plan.lanes;
  g.slots_per_piece = plan.slots_per_piece;
  g.kept = kept;
  g.staged = staged;
  g.aligned = planes ? shape.spatial * size % 16 == 0
                     : shape.channels * size % 16 == 0 && (plan.tile == shape.channels || plan.tile * size % 16 == 0);
  g.piece = plan.piece;
  g.slab = plan.slab;
  g.empty = is_empty(shape);
  g.sign_run = sign_run(shape, type);
  g.slabs = g.empty ? 0 : plan.slabs;
  g.tasks = plan.tasks;
  g.domains = batch ? 1 : shape.samples;
  g.domain_rows = batch ? shape.samples * shape.spatial : shape.spatial;
  g.tile = int(plan.tile);
  g.tiles_divisor = Divisor(uint32_t(planes ? 1 : (shape.channels + plan.tile - 1) / plan.tile));
  g.sets_per_task = int(plan.sets_per_task);
  g.local_entries = int(plan.local_entries);
  g.rounds = int(plan.rounds);
  g.kept_rounds = int(plan.kept_rounds);
  g.chunks_divisor = Divisor(uint32_t(plan.chunks));
  g.task_divisor = Divisor(uint32_t(plan.sets_per_task * plan.chunks > 0 ? plan.sets_per_task * plan.chunks : 1));
  return g;
}

template <class A>
SwitchArguments<A> switch_arguments(const Switch& mix, const PlaneShape& shape) {
  if (mix.terms == 0) return {};
  SwitchArguments<A> arguments{};
  arguments.terms = mix.terms;
  arguments.constant_batch = mix.constant_batch;
  arguments.average = mix.average;
  arguments.unbiased = mix.unbiased;
  arguments.mean_logits = {mix.mean_logits, mix.type};
  arguments.var_logits = {mix.var_logits, mix.type};
  arguments.factors = switch_factors<A>(mix, shape.samples, shape.channels, shape.spatial);
  return arguments;
}

inline LaunchConfig plane_config(const PlanePlan& plan, const char* name) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.smem = size_t(plan.shared_bytes);
  config.cluster = unsigned(plan.cluster);
  config.cooperative = plan.cooperative;
  config.name = name;
  return config;
}

// Calls f(null pointer of the element type, integral_constant of the layout, of the team).
template <class F>
void with_plane_kernel(DType type, const PlanePlan& plan, F f) {
  with_type(type, [&](auto* element) {
    const auto with_team = [&](auto layout) {
      if (plan.team == Team::Cluster) return f(element, layout, std::integral_constant<Team, Team::Cluster>());
      return f(element, layout, std::integral_constant<Team, Team::Grid>());
    };
    if (plan.layout == Layout::ChannelsFirst) return with_team(std::integral_constant<Layout, Layout::ChannelsFirst>());
    return with_team(std::integral_constant<Layout, Layout::ChannelsLast>());
  });
}

inline int64_t round_up(int64_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace torchfastnorm::cuda
