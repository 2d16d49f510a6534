// Who computes what, for BatchNorm, GroupNorm and InstanceNorm: plane_kernels.h tells how planes are cut.
//
//   channels first   sets over threads, complete: statistics, then y from cache
//   channels last    slabs over threads, complete
//   in phases        blocks, or tiles of chunks of rows, over threads; then the sets; then blocks, or tiles, again:
//                    where there are too few sets or slabs
//
// Both ways form the same sums and merge them in the same order: results do not depend on the number of threads.
#include "plane_norm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../math/switch_norm.h"
#include "common/parallel.h"
#include "plane_kernels.h"

namespace torchfastnorm::cpu {
namespace {

// Parts of the workspace, one after the other; without a base only their size is found.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T = void>
  T* take(int64_t bytes) {
    char* const part = base_ ? base_ + size_ : nullptr;
    size_ += (bytes + 15) / 16 * 16;
    return reinterpret_cast<T*>(part);
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

// Planes of one element are one row of channels; one channel is one plane in either layout.
template <class ARGUMENTS>
bool channels_first(const ARGUMENTS& a) {
  return a.shape.channels == 1 || (a.shape.layout == Layout::ChannelsFirst && a.shape.spatial > 1);
}
template <class ARGUMENTS>
bool nothing_to_read(const ARGUMENTS& a) {
  return a.shape.samples == 0 || a.shape.channels == 0 || a.shape.spatial == 0;
}

// Only this many sets or slabs may be worked on in phases: it needs room for the sums of all.
constexpr int64_t kMostSets = 1024, kMostSlabs = 64;

bool shared_evenly(int64_t items) {
  const int64_t threads = thread_count();
  return (items + threads - 1) / threads * threads * 4 <= items * 5;
}

double weight_of(double momentum, int64_t* batches) {
  if (batches) ++*batches;
  return momentum >= 0 ? momentum : batches ? 1 / double(*batches) : 1;
}

// Itself where it is of that type, and no copy is wanted.
const void* widened(const void* parameter, DType type, DType stat, int64_t channels, double fill, Workspace& workspace,
                    bool copy = false) {
  if (parameter && type == stat && !copy) return parameter;
  void* const to = workspace.take(channels * size_of(stat));
  if (to) plane_kernels().widen(to, stat, parameter, type, channels, fill);
  return to;
}

// What is switchable can do with nothing else.
template <class ARGUMENTS>
bool in_phases(const ARGUMENTS& a, const PlaneGeometry& g) {
  return a.mix.terms || (channels_first(a) ? g.sets() <= kMostSets : g.slabs <= kMostSlabs);
}

template <class CALL>
void mix_sets(const CALL& call, const SwitchSteps<CALL>& steps) {
  const PlaneGeometry& g = call.geometry;
  parallel_for(g.slabs, g.channels, [&](int64_t begin, int64_t end) { steps.samples(call, begin, end); });
  parallel_for(g.channels, g.slabs, [&](int64_t begin, int64_t end) { steps.channels(call, begin, end); });
  parallel_for(g.slabs, g.channels, [&](int64_t begin, int64_t end) { steps.planes(call, begin, end); });
}

PlaneForwardCall prepare(const PlaneNormForward& a, Sets sets, Workspace& workspace) {
  const DType stat = accumulator_of(a.type);
  PlaneForwardCall call{};
  PlaneGeometry& g = call.geometry;
  call.arguments = &a;
  g = geometry_of(sets, a.shape);
  const int64_t of_sets = g.sets() * size_of(stat);
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
    parallel_for(g.slabs, g.channels * chunk_count(g), [&](int64_t begin, int64_t end) {
      std::vector<char> scratch(size_t(kernels.last_scratch(g)));
      for (int64_t slab = begin; slab < end; ++slab) kernels.last_finish(call, slab, scratch.data());
    });
    if (call.arguments->mix.terms) mix_sets(call, kernels.mix);
  }
  parallel_for(tiles, tile_elements, [&](int64_t begin, int64_t end) { kernels.last_apply(call, begin, end); });
}

PlaneBackwardCall prepare(const PlaneNormBackward& a, Sets sets, Workspace& workspace) {
  const DType stat = accumulator_of(a.type);
  PlaneBackwardCall call{};
  PlaneGeometry& g = call.geometry;
  call.arguments = &a;
  g = geometry_of(sets, a.shape);
  call.apply = a.grad_x || a.grad_residual;
  call.sums = a.grad_weight || a.grad_bias || (a.grad_x && a.batch_statistics);
  call.keeps_g =
      call.sums && a.batch_statistics && a.activation == Activation::Relu && !a.mask && a.residual && a.grad_residual;
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
    return parallel_for(sets, set_elements, [&](int64_t begin, int64_t end) { kernels.first_sets(call, begin, end); });
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
  parallel_for(slab_parts(g), slabs_per_part(g) * g.channels, [&](int64_t begin, int64_t end) {
    std::vector<char> scratch(size_t(kernels.last_scratch(g)));
    for (int64_t slab = begin * slabs_per_part(g); slab < end * slabs_per_part(g) && slab < g.slabs; ++slab)
      kernels.last_finish(call, slab, scratch.data());
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
  if (a.running_mean && !a.mix.terms && !nothing_to_read(a))
    kernels.update_running(call, momentum);  // as torch: nothing seen, kept
}

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
