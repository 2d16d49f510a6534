// Backward of the norms of feature maps on the CPU: which kernels run over what (plane_phases.h).
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "plane_norm.h"
#include "plane_phases.h"

namespace torchfastnorm::cpu {
namespace {

// g of so many elements stays in the second-level cache with all else of a set. A ReLU's is formed again sooner.
constexpr int64_t kKeptElements = 1 << 17;

PlaneBackwardCall prepare(const PlaneNormBackward& a, Sets sets, Workspace& workspace) {
  const DType stat = accumulator_of(a.type);
  PlaneBackwardCall call{};
  PlaneGeometry& g = call.geometry;
  call.arguments = &a;
  g = geometry_of(sets, a.shape);
  call.apply = a.grad_x || a.grad_residual;
  const int64_t tensors = 2 + (a.residual != nullptr) + (a.grad_x != nullptr) + (a.grad_residual != nullptr);
  const bool by_tiles = channels_first(a) && short_planes(g, a.mask);
  call.past = call.apply && plane_goes_past_caches(a, g, by_tiles, a.grad_x, tensors, kPastInBackward) &&
              plane_goes_past_caches(a, g, by_tiles, a.grad_residual, tensors, kPastInBackward);
  call.sums = a.grad_weight || a.grad_bias || a.mix.terms || (a.grad_x && a.batch_statistics);
  call.keeps_g = call.sums && call.apply && a.batch_statistics && !a.mask && takes_long(a.activation) &&
                 g.rows() * g.per_set <= kKeptElements && channels_first(a) && !short_planes(g, a.mask);
  call.weight = widened(a.weight, a.param_type, stat, g.channels, 1, workspace);
  call.bias = widened(a.bias, a.param_type, stat, g.channels, 0, workspace, a.renorm != Renorm::None);
  call.coefficients = workspace.take(g.sets() * 2 * size_of(stat));
  call.counts = workspace.take<double>(g.slabs * 8);
  call.of_parts = workspace.take<double>(slab_parts(g) * 2 * g.channels * 8);
  if (a.mix.terms) {
    call.of_planes = workspace.take<GradientSums>(g.sets() * int64_t(sizeof(GradientSums)));
    call.of_groups = workspace.take<double>((2 * g.slabs + (2 + 2 * switch_terms) * g.channels) * 8);
  }
  if (!in_phases(a, g)) return call;
  if (channels_first(a)) {
    const int64_t blocks = g.slabs * g.channels * cut_of(g.slab_samples, g.spatial).blocks;
    call.of_blocks = workspace.take<GradientSums>(blocks * int64_t(sizeof(GradientSums)));
  } else {
    call.of_chunks = workspace.take<double>(g.slabs * chunk_count(g) * 2 * g.channels * 8);
  }
  return call;
}

void backward_first(const PlaneBackwardCall& call, const PlaneBackwardKernels& kernels) {
  const PlaneGeometry& g = call.geometry;
  const int64_t sets = slab_parts(g) * g.groups, set_elements = slabs_per_part(g) * g.rows() * g.per_set;
  const bool complete = !in_phases(*call.arguments, g) || short_planes(g, call.arguments->mask) || shared_evenly(sets);
  if (complete && !call.arguments->mix.terms)
    return parallel_for(sets, set_elements, [&](int64_t begin, int64_t end) {
      // Not a vector, which would clear it.
      const std::unique_ptr<char[]> scratch(call.keeps_g ? new char[size_t(kernels.first_scratch(g))] : nullptr);
      kernels.first_sets(call, begin, end, scratch.get());
    });
  const int64_t blocks = g.slabs * g.channels * cut_of(g.slab_samples, g.spatial).blocks;
  const int64_t block_elements = g.slabs * g.channels * g.rows() / blocks;
  parallel_for(blocks, block_elements, [&](int64_t begin, int64_t end) { kernels.first_sums(call, begin, end); });
  parallel_for(g.groups, g.slabs, [&](int64_t begin, int64_t end) { kernels.first_finish(call, begin, end); });
  if (call.arguments->mix.terms) mix_sets(call, kernels.mix);
  if (call.apply && call.arguments->batch_statistics)
    parallel_for(blocks, block_elements, [&](int64_t begin, int64_t end) { kernels.first_apply(call, begin, end); });
}

void backward_last(const PlaneBackwardCall& call, const PlaneBackwardKernels& kernels) {
  const PlaneGeometry& g = call.geometry;
  if (!in_phases(*call.arguments, g) || (!g.batch && !call.arguments->mix.terms && shared_evenly(slab_parts(g))))
    return parallel_for(slab_parts(g), slabs_per_part(g) * g.rows() * g.channels, [&](int64_t begin, int64_t end) {
      std::vector<char> scratch(size_t(kernels.last_scratch(g)));
      kernels.last_parts(call, begin, end, scratch.data());
    });
  const int64_t tiles = g.slabs * chunk_count(g) * tile_count(g);
  const int64_t tile_elements = std::min(g.rows(), chunk_rows(g)) * std::min(g.channels, kTile);
  parallel_for(tiles, tile_elements, [&](int64_t begin, int64_t end) { kernels.last_sums(call, begin, end); });
  // The slabs of a part one after the other.
  const int64_t parts = finish_count(g), work = slabs_per_part(g) * g.channels * chunk_count(g) / parts;
  parallel_for(slab_parts(g) * parts, work, [&](int64_t begin, int64_t end) {
    std::vector<char> scratch(size_t(kernels.last_scratch(g)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / parts * slabs_per_part(g);
      for (int64_t slab = first; slab < first + slabs_per_part(g) && slab < g.slabs; ++slab)
        kernels.last_finish(call, slab, finish_of(g, i % parts), scratch.data());
    }
  });
  if (call.arguments->mix.terms) mix_sets(call, kernels.mix);
  if (call.apply && call.arguments->batch_statistics)
    parallel_for(tiles, tile_elements, [&](int64_t begin, int64_t end) { kernels.last_apply(call, begin, end); });
}

// Elements of a channel of each slab that count.
void count(const PlaneBackwardCall& call, double* counts) {
  const PlaneGeometry& g = call.geometry;
  const uint8_t* mask = call.arguments->mask;
  for (int64_t slab = 0; slab < g.slabs; ++slab) {
    int64_t sum = mask ? 0 : g.rows();
    for (int64_t row = 0; mask && row < g.rows(); ++row) sum += mask[slab * g.rows() + row];
    counts[slab] = double(sum);
  }
}

}  // namespace

int64_t plane_norm_backward_workspace(const PlaneNormBackward& a, Sets sets) {
  Workspace workspace(nullptr);
  prepare(a, sets, workspace);
  return workspace.size();
}

void plane_norm_backward(const PlaneNormBackward& a, Sets sets, Stream) {
  Workspace workspace(a.workspace);
  const PlaneBackwardCall call = prepare(a, sets, workspace);
  const PlaneBackwardKernels kernels = plane_kernels().backward(call);
  const PlaneGeometry& g = call.geometry;
  if (a.renorm != Renorm::None) kernels.shift_bias(call);
  count(call, call.counts);
  if (!a.batch_statistics) std::memset(call.coefficients, 0, size_t(g.sets() * 2 * size_of(accumulator_of(a.type))));
  if (nothing_to_read(a))
    std::fill_n(call.of_parts, slab_parts(g) * 2 * g.channels, 0.0);
  else if (channels_first(a))
    backward_first(call, kernels);
  else
    backward_last(call, kernels);
  kernels.parameters(call);
  if (a.mix.terms) kernels.logits(call);
}

}  // namespace torchfastnorm::cpu
