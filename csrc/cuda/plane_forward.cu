// Forward of BatchNorm, GroupNorm and InstanceNorm on CUDA devices: one launch of plane_forward.cuh.
#include "plane_arguments.h"
#include "plane_forward.cuh"
#include "plane_launch.h"

namespace torchfastnorm::cuda {
namespace {

// Running statistics of instances average over samples, and a cumulative average counts batches: both come last. What
// is switchable mixes the sets.
bool is_ordered(const PlaneNormForward& a, Sets sets) {
  return a.mix.terms != 0 ||
         (a.batch_statistics && (is_empty(a.shape) || (sets == Sets::Instance && a.running_mean != nullptr) ||
                                 (a.momentum < 0 && a.batches != nullptr)));
}

PlanePlan plan_of(const PlaneNormForward& a, Sets sets) {
  return plan_plane_norm(
      {a.shape, sets, a.type, a.batch_statistics, is_ordered(a, sets), 1, a.residual != nullptr, a.choice},
      device_limits());
}

// The table of entries, then mean and rstd where the caller does not want them, then the variances of instances, then
// the entries of whole planes.
struct Space {
  int64_t table, statistics, variance, planes;
  int64_t total() const { return table + statistics + variance + planes; }
};
Space space_of(const PlaneNormForward& a, Sets sets, const PlanePlan& plan) {
  if (plan.team == Team::Cluster || !a.batch_statistics) return {};
  const int64_t size = size_of(accumulator_of(a.type)), count = sets_of(sets, a.shape);
  const int64_t statistics =
      a.mean == nullptr ? (a.renorm == Renorm::None ? 2 : 1 + renormed_values) * count * size : 0;
  const bool switchable = a.mix.terms != 0;
  return {round_up(plan.entries * entry_values * size), round_up(statistics),
          sets == Sets::Instance && a.running_mean != nullptr && !switchable ? round_up(count * size) : 0,
          switchable ? count * entry_values * size : 0};
}

}  // namespace

int64_t plane_norm_forward_workspace(const PlaneNormForward& a, Sets sets) {
  return a.shape.channels == 0 ? 0 : space_of(a, sets, plan_of(a, sets)).total();
}

void plane_norm_forward(const PlaneNormForward& a, Sets sets, Stream stream) {
  if (a.shape.channels == 0 || sets_of(sets, a.shape) == 0) return;
  const PlanePlan plan = plan_of(a, sets);
  const Space space = space_of(a, sets, plan);
  with_plane_kernel(a.type, plan, [&](auto* element, auto layout, auto team) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = Accumulator<T>;
    PlaneForwardArguments<A> arguments{};
    arguments.geometry = geometry_of(a.shape, sets, plan, a.type, 1, a.residual != nullptr);
    arguments.x = a.x;
    arguments.residual = a.residual;
    arguments.weight = {a.weight, a.param_type};
    arguments.bias = {a.bias, a.param_type};
    arguments.mask = a.mask;
    char* workspace = static_cast<char*>(a.workspace);
    arguments.table = reinterpret_cast<Entry<A>*>(workspace);
    arguments.activation = a.activation;
    arguments.batch_statistics = a.batch_statistics;
    arguments.y = a.y;
    arguments.signs = a.signs;
    arguments.mean = static_cast<A*>(a.mean);
    arguments.rstd = static_cast<A*>(a.rstd);
    if (space.statistics > 0) {
      arguments.mean = reinterpret_cast<A*>(workspace + space.table);
      arguments.rstd = arguments.mean + sets_of(sets, a.shape);
    }
    if (space.variance > 0) arguments.variance = reinterpret_cast<A*>(workspace + space.table + space.statistics);
    arguments.running_mean = a.running_mean;
    arguments.running_var = a.running_var;
    arguments.running_type = a.running_type;
    arguments.batches = a.batch_statistics ? a.batches : nullptr;
    arguments.eps = A(a.eps);
    arguments.momentum = A(a.momentum);
    arguments.renorm = a.renorm;
    const RenormBounds& b = a.bounds;
    arguments.bounds = {A(b.r_max), A(b.d_max), A(b.r_begin), A(b.r_end), A(b.d_begin), A(b.d_end)};
    arguments.mix = switch_arguments<A>(a.mix, a.shape);
    arguments.mix.planes = reinterpret_cast<Entry<A>*>(workspace + space.table + space.statistics + space.variance);
    launch(plane_forward<T, decltype(layout)::value, decltype(team)::value>, plane_config(plan, "plane_forward"),
           static_cast<cudaStream_t>(stream), arguments);
  });
}

}  // namespace torchfastnorm::cuda
