// Forward of the norms of feature maps on the CPU: which kernels run over what (plane_phases.h).
#include <algorithm>
#include <vector>

#include "plane_norm.h"
#include "plane_phases.h"

namespace torchfastnorm::cpu {
namespace {

double weight_of(double momentum, int64_t* batches) {
  if (batches) ++*batches;
  return momentum >= 0 ? momentum : batches ? 1 / double(*batches) : 1;
}

PlaneForwardCall prepare(const PlaneNormForward& a, Sets sets, Workspace& workspace) {
  const DType stat = accumulator_of(a.type);
  PlaneForwardCall call{};
  PlaneGeometry& g = call.geometry;
  call.arguments = &a;
  g = geometry_of(sets, a.shape);
  const int64_t of_sets = g.sets() * size_of(stat);
  const bool by_tiles = a.batch_statistics && channels_first(a) && short_planes(g, a.mask);
  call.past = plane_goes_past_caches(a, g, by_tiles, a.y, a.residual ? 3 : 2, kPastInForward);
  call.weight = widened(a.weight, a.param_type, stat, g.channels, 1, workspace);
  const bool renorm = a.renorm != Renorm::None && a.batch_statistics;
  call.bias = const_cast<void*>(widened(a.bias, a.param_type, stat, g.channels, 0, workspace, renorm));
  call.mean = a.mean ? a.mean : workspace.take(of_sets);
  call.rstd = a.rstd ? a.rstd : workspace.take(renorm ? renormed_values * of_sets : of_sets);
  call.limits = {a.bounds.r_max, a.bounds.d_max};
  if (renorm && a.batches) call.limits = limits_at(double(*a.batches), a.bounds);
  if (!a.batch_statistics) return call;
  if (a.running_mean || a.mix.terms) call.of_sets = workspace.take<Moments>(g.sets() * int64_t(sizeof(Moments)));
  if (!in_phases(a, g)) return call;
  if (channels_first(a)) {
    const int64_t blocks = g.sets() * cut_of(planes_of(g, 0, 0, g.per_set).count, g.spatial).blocks;
    call.of_blocks = workspace.take<Moments>(blocks * int64_t(sizeof(Moments)));
  } else {
    call.of_chunks = workspace.take<double>(g.slabs * chunk_count(g) * 2 * g.channels * 8);
    call.counts = workspace.take<double>(g.slabs * chunk_count(g) * 8);
  }
  return call;
}

void forward_first(const PlaneForwardCall& call, const PlaneForwardKernels& kernels) {
  const PlaneGeometry& g = call.geometry;
  const int64_t set_elements = g.rows() * g.per_set;
  if (call.arguments->batch_statistics) {
    const bool complete =
        !in_phases(*call.arguments, g) || short_planes(g, call.arguments->mask) || shared_evenly(g.sets());
    if (complete && !call.arguments->mix.terms)
      return parallel_for(g.sets(), set_elements,
                          [&](int64_t begin, int64_t end) { kernels.first_sets(call, begin, end); });
    const int64_t blocks = cut_of(planes_of(g, 0, 0, g.per_set).count, g.spatial).blocks;
    parallel_for(g.sets() * blocks, set_elements / blocks,
                 [&](int64_t begin, int64_t end) { kernels.first_moments(call, begin, end); });
    parallel_for(g.sets(), blocks, [&](int64_t begin, int64_t end) { kernels.first_finish(call, begin, end); });
    if (call.arguments->mix.terms) mix_sets(call, kernels.mix);
  }
  const int64_t pieces = block_count(g.spatial);
  parallel_for(g.slabs * g.slab_samples * g.channels * pieces, g.spatial / pieces,
               [&](int64_t begin, int64_t end) { kernels.first_apply(call, begin, end); });
}

void forward_last(const PlaneForwardCall& call, const PlaneForwardKernels& kernels) {
  const PlaneGeometry& g = call.geometry;
  const int64_t chunks = g.slabs * chunk_count(g), tiles = chunks * tile_count(g);
  const int64_t tile_elements = std::min(g.rows(), chunk_rows(g)) * std::min(g.channels, kTile);
  if (call.arguments->batch_statistics) {
    if (!in_phases(*call.arguments, g) || (!g.batch && !call.arguments->mix.terms && shared_evenly(g.slabs)))
      return parallel_for(g.slabs, g.rows() * g.channels, [&](int64_t begin, int64_t end) {
        std::vector<char> scratch(size_t(kernels.last_scratch(g)));
        kernels.last_slabs(call, begin, end, scratch.data());
      });
    parallel_for(tiles, tile_elements, [&](int64_t begin, int64_t end) { kernels.last_moments(call, begin, end); });
    const int64_t parts = finish_count(g);
    parallel_for(g.slabs * parts, g.channels * chunk_count(g) / parts, [&](int64_t begin, int64_t end) {
      std::vector<char> scratch(size_t(kernels.last_scratch(g)));
      for (int64_t i = begin; i < end; ++i)
        kernels.last_finish(call, i / parts, finish_of(g, i % parts), scratch.data());
    });
    if (call.arguments->mix.terms) mix_sets(call, kernels.mix);
  }
  parallel_for(tiles, tile_elements, [&](int64_t begin, int64_t end) { kernels.last_apply(call, begin, end); });
}

}  // namespace

int64_t plane_norm_forward_workspace(const PlaneNormForward& a, Sets sets) {
  Workspace workspace(nullptr);
  prepare(a, sets, workspace);
  return workspace.size();
}

void plane_norm_forward(const PlaneNormForward& a, Sets sets, Stream) {
  Workspace workspace(a.workspace);
  const PlaneForwardCall call = prepare(a, sets, workspace);
  const PlaneForwardKernels kernels = plane_kernels().forward(call);
  if (!a.batch_statistics) kernels.running_statistics(call);
  if (nothing_to_read(a)) {
    if (a.batch_statistics) kernels.first_finish(call, 0, call.geometry.sets());
  } else if (channels_first(a)) {
    forward_first(call, kernels);
  } else {
    forward_last(call, kernels);
  }
  if (!a.batch_statistics) return;
  const double momentum = a.renorm == Renorm::None ? weight_of(a.momentum, a.batches) : a.momentum;
  if (!a.running_mean || a.mix.terms || nothing_to_read(a)) return;  // as torch: nothing seen, kept
  constexpr int64_t kElements = 32;                                  // as much work as one channel
  parallel_for(call.geometry.channels, kElements * call.geometry.slabs,
               [&](int64_t begin, int64_t end) { kernels.update_running(call, momentum, begin, end); });
}

}  // namespace torchfastnorm::cpu
