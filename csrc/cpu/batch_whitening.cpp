// Whitening on the CPU (interface/batch_whitening.h): which kernels run over what (whitening_kernels.h).
#include <algorithm>
#include <memory>

#include "common/parallel.h"
#include "whitening_kernels.h"

namespace torchfastnorm::cpu {
namespace {

std::unique_ptr<char[]> uninitialized(int64_t bytes) { return std::unique_ptr<char[]>(new char[size_t(bytes)]); }

// A chunk has no fewer positions than a block has channels: what is known of chunks is never much larger than the data.
WhiteningMomentsCall prepare(const WhiteningMoments& a) {
  WhiteningMomentsCall call{};
  WhiteningGeometry& g = call.geometry;
  call.arguments = &a;
  g = whitening_geometry(a.shape);
  call.blocks = even_cut(g.width, kWidestBlock, kPanelStep);
  const int64_t panel = moments_panel(g.channels_first), pairs = g.groups * call.block_pairs();
  const int64_t most = std::max<int64_t>(1, kMostMomentParts / pairs), even = (g.positions() + most - 1) / most;
  call.chunks = even_cut(g.positions(), std::max(rounded_up(even, kPanelStep), kChunkPanels * panel), kPanelStep);
  call.states = static_cast<double*>(a.workspace);
  return call;
}

}  // namespace

int64_t batch_whitening_moments_workspace(const WhiteningMoments& a) {
  const WhiteningMomentsCall call = prepare(a);
  return call.geometry.groups * call.block_pairs() * call.chunks.parts * call.state_size() * int64_t(sizeof(double));
}

void batch_whitening_moments(const WhiteningMoments& a, Stream) {
  const WhiteningMomentsCall call = prepare(a);
  const WhiteningMomentsKernels kernels = whitening_kernels().moments(call);
  const int64_t pairs = call.geometry.groups * call.block_pairs();
  parallel_for(pairs * call.chunks.parts, call.chunks.size * call.blocks.size, [&](int64_t begin, int64_t end) {
    const auto scratch = uninitialized(kernels.scratch(call));
    kernels.chunks(call, begin, end, scratch.get());
  });
  parallel_for(pairs * call.blocks.size, call.chunks.parts * call.blocks.size,
               [&](int64_t begin, int64_t end) { kernels.finish(call, begin, end); });
}

void batch_whitening_transform(const WhiteningTransform& a, Stream) {
  WhiteningTransformCall call{};
  WhiteningGeometry& g = call.geometry;
  call.arguments = &a;
  g = whitening_geometry(a.shape);
  call.panels = even_cut(g.positions(), transform_panel(g), kPanelStep);
  const WhiteningTransformKernels kernels = whitening_kernels().transform(call);
  std::unique_ptr<char[]> matrices;
  if (!g.channels_first) {
    const int64_t elements = (a.v ? 2 : 1) * g.width * rounded_up(g.width, kPanelStep);
    matrices = uninitialized(g.groups * elements * size_of(accumulator_of(a.type)));
    call.matrices = matrices.get();
    parallel_for(g.groups, elements, [&](int64_t begin, int64_t end) { kernels.matrices(call, begin, end); });
  }
  parallel_for(g.groups * call.panels.parts, call.panels.size * g.width, [&](int64_t begin, int64_t end) {
    const auto scratch = uninitialized(kernels.scratch(call));
    kernels.panels(call, begin, end, scratch.get());
  });
}

}  // namespace torchfastnorm::cpu
