// Backward of BatchNorm, GroupNorm and InstanceNorm on CUDA devices: one launch of plane_backward.cuh, and a second one
// for the parameters' gradients where a cluster's sets are not their sums.
#include <algorithm>

#include "plane_arguments.h"
#include "plane_backward.cuh"
#include "plane_launch.h"

namespace torchfastnorm::cuda {
namespace {

bool with_residual(const PlaneNormBackward& a) {
  return a.residual != nullptr && a.signs == nullptr && a.activation != Activation::None;
}

PlanePlan plan_of(const PlaneNormBackward& a, Sets sets) {
  const bool ordered = a.mix.terms != 0 || (a.batch_statistics && is_empty(a.shape));
  return plan_plane_norm({a.shape, sets, a.type, a.batch_statistics, ordered, with_residual(a) ? 3 : 2, 0, a.choice},
                         device_limits());
}

bool wants_parameters(const PlaneNormBackward& a) { return a.grad_weight != nullptr || a.grad_bias != nullptr; }

// The table of entries (of one where there is none: a kernel takes a table to mean that sums are wanted), then two
// means of each set, then what switch_norm.cuh works with.
struct Space {
  int64_t table, means, planes, gradients, sums;
  int64_t total() const { return table + means + planes + gradients + sums; }
};
Space space_of(const PlaneNormBackward& a, Sets sets, const PlanePlan& plan) {
  const int64_t size = size_of(accumulator_of(a.type)),
                table = round_up(std::max<int64_t>(plan.entries, 1) * entry_values * size);
  if (plan.team == Team::Cluster) return {sets != Sets::Batch && wants_parameters(a) ? table : 0};
  if (!a.batch_statistics) return {wants_parameters(a) ? table : 0};
  const int64_t count = sets_of(sets, a.shape), means = round_up(2 * count * size);
  if (a.mix.terms == 0) return {table, means};
  const int64_t groups = a.shape.samples + a.shape.channels;
  return {table, means, round_up(count * entry_values * size), round_up(2 * (count + groups) * size),
          switch_terms * a.shape.channels * entry_values * size};
}

}  // namespace

int64_t plane_norm_backward_workspace(const PlaneNormBackward& a, Sets sets) {
  if (a.shape.channels == 0) return 0;
  return space_of(a, sets, plan_of(a, sets)).total();
}

void plane_norm_backward(const PlaneNormBackward& a, Sets sets, Stream stream) {
  if (a.shape.channels == 0) return;
  const PlanePlan plan = plan_of(a, sets);
  const Space space = space_of(a, sets, plan);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  with_plane_kernel(a.type, plan, [&](auto* element, auto layout, auto team) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = Accumulator<T>;
    PlaneBackwardArguments<A> arguments{};
    arguments.geometry = geometry_of(a.shape, sets, plan, a.type, with_residual(a) ? 3 : 2, 0);
    arguments.x = a.x;
    arguments.residual = a.residual;
    arguments.weight = {a.weight, a.param_type};
    arguments.bias = {a.bias, a.param_type};
    arguments.mask = a.mask;
    char* workspace = static_cast<char*>(a.workspace);
    arguments.table = space.table > 0 ? reinterpret_cast<Entry<A>*>(workspace) : nullptr;
    arguments.activation = a.activation;
    arguments.batch_statistics = a.batch_statistics;
    arguments.renorm = a.renorm;
    arguments.grad_y = a.grad_y;
    arguments.signs = a.signs;
    arguments.mean = static_cast<const A*>(a.mean);
    arguments.rstd = static_cast<const A*>(a.rstd);
    arguments.set_means = reinterpret_cast<A*>(workspace + space.table);
    arguments.mix = switch_arguments<A>(a.mix, a.shape);
    if (a.mix.terms != 0) {
      char* const mix = workspace + space.table + space.means;
      arguments.mix.planes = reinterpret_cast<Entry<A>*>(mix);
      arguments.mix.of_means = reinterpret_cast<A*>(mix + space.planes);
      arguments.mix.of_vars = arguments.mix.of_means + space.gradients / (2 * sizeof(A));
      arguments.mix.sums = reinterpret_cast<Entry<A>*>(mix + space.planes + space.gradients);
      arguments.mix.grad_mean_logits = a.grad_mean_logits;
      arguments.mix.grad_var_logits = a.grad_var_logits;
    }
    arguments.grad_x = a.grad_x;
    arguments.grad_residual = a.grad_residual;
    arguments.grad_weight = a.grad_weight;
    arguments.grad_bias = a.grad_bias;
    arguments.param_type = a.param_type;
    const int64_t elements = a.shape.samples * a.shape.channels * a.shape.spatial, count = sets_of(sets, a.shape);
    arguments.inverse_count = elements > 0 ? A(double(count) / double(elements)) : A(0);
    LaunchConfig config = plane_config(plan, "plane_backward");
    config.cooperative = plan.team == Team::Grid && arguments.table != nullptr;
    launch(plane_backward<T, decltype(layout)::value, decltype(team)::value>, config, cuda_stream, arguments);
    if (plan.team == Team::Cluster && space.table > 0) {
      LaunchConfig finish;
      finish.name = "plane_parameter_gradients";
      finish.block = dim3(512);
      finish.grid = dim3(unsigned(a.shape.channels < 1024 ? a.shape.channels : 1024));
      launch(plane_parameter_gradients<A>, finish, cuda_stream, arguments, plan.layout);
    }
  });
}

}  // namespace torchfastnorm::cuda
