// The kernels of whitening that each instruction set provides (whitening_moments.h, whitening_transform.h), and how
// feature maps are cut for them. Everything works on panels, a few hundred positions of a group's channels, copied as
// accumulators around a shift into scratch that stays in the second-level cache:
//
//   channels first   a row of the panel is a channel:    x x x x x x x | x x x x x      (runs of several samples)
//   channels last    a row of the panel is a position:   c c c c c c c c
//
// so neither layout is ever transposed. A position is a place of a sample, sample * spatial + place.
//
// Moments are a matrix of blocks of at most kWidestBlock channels by as many. The positions are cut into chunks, these
// into panels; chunks depend on the shape alone and are merged in their order in double, so results depend neither on
// the number of threads nor on their order.
#pragma once
#include "../interface/batch_whitening.h"

namespace torchfastnorm::cpu {

struct WhiteningGeometry {
  bool channels_first;
  int64_t samples, spatial, channels, groups, width;
  int64_t positions() const { return samples * spatial; }
};

// One channel is one long plane in either layout, planes of one element are rows of channels; rows of channels have no
// need to know samples.
inline WhiteningGeometry whitening_geometry(const PlaneShape& shape) {
  const int64_t positions = shape.samples * shape.spatial, width = shape.channels / shape.groups;
  if (shape.channels == 1) return {true, 1, positions, 1, 1, 1};
  const bool first = shape.layout == Layout::ChannelsFirst && shape.spatial > 1;
  return {first, first ? shape.samples : 1, first ? shape.spatial : positions, shape.channels, shape.groups, width};
}

constexpr int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// [0, count) in `parts` parts of `size`, the last one shorter.
struct EvenCut {
  int64_t count, parts, size;
  int64_t begin(int64_t part) const { return part * size; }
  int64_t size_of(int64_t part) const { return count - begin(part) < size ? count - begin(part) : size; }
};
// As even as multiples of `step` allow, in parts of at most `largest`, a multiple of step.
inline EvenCut even_cut(int64_t count, int64_t largest, int64_t step) {
  const int64_t parts = (count + largest - 1) / largest;
  const int64_t size = rounded_up((count + parts - 1) / parts, step);
  return {count, (count + size - 1) / size, size};
}

// Narrow groups are visited together, one after the other for the same positions: their channels share cache lines.
struct Visit {
  int64_t group, part;
};
inline Visit visit(int64_t item, int64_t groups, int64_t parts, int64_t width) {
  const int64_t together = width < 64 ? 64 / width : 1, bundle = item / (together * parts);
  const int64_t within = item - bundle * together * parts, left = groups - bundle * together;
  const int64_t size = left < together ? left : together;
  return {bundle * together + within % size, within / size};
}

constexpr int64_t kPanelStep = 16;        // positions and channels: a whole number of vectors for every instruction set
constexpr int64_t kWidestBlock = 128;     // channels: two panels of it stay in the second-level cache
constexpr int64_t kChunkPanels = 4;       // at least
constexpr int64_t kMostMomentParts = 64;  // chunks of all groups and blocks together, if positions are enough for that

// Positions of a panel of moments, at most. What a panel costs beyond its positions, a sum across each vector of
// products (channels first) and an addition in double for each product, is then a few percent.
constexpr int64_t moments_panel(bool channels_first) { return channels_first ? 512 : 256; }

// Positions of a panel of a transform: fewer where there are many channels, which all are needed at once.
inline int64_t transform_panel(const WhiteningGeometry& g) {
  const int64_t most = rounded_up(32768 / g.width, 64);
  return most < 256 ? most : 256;
}

struct WhiteningMomentsCall {
  const WhiteningMoments* arguments;
  WhiteningGeometry geometry;
  EvenCut blocks;  // of a group's channels
  EvenCut chunks;  // of the positions
  double* states;  // (groups, block_pairs, chunks, state_size): what a chunk found, as MomentState says

  bool symmetric() const { return arguments->u == arguments->v; }
  int64_t block_pairs() const {
    return symmetric() ? blocks.parts * (blocks.parts + 1) / 2 : blocks.parts * blocks.parts;
  }
  int64_t stride() const { return rounded_up(blocks.size, kPanelStep); }
  int64_t state_size() const { return (stride() + 2) * stride(); }
};

struct WhiteningMomentsKernels {
  int64_t (*scratch)(const WhiteningMomentsCall&);                                         // bytes, of one thread
  void (*chunks)(const WhiteningMomentsCall&, int64_t begin, int64_t end, void* scratch);  // of block pairs of groups
  void (*finish)(const WhiteningMomentsCall&, int64_t begin, int64_t end);                 // rows of block pairs
};

struct WhiteningTransformCall {
  const WhiteningTransform* arguments;
  WhiteningGeometry geometry;
  EvenCut panels;  // of the positions
  void* matrices;  // channels last: (groups, 1 or 2, width, width rounded up) stat, transposed; else null
};

struct WhiteningTransformKernels {
  int64_t (*scratch)(const WhiteningTransformCall&);                                         // bytes, of one thread
  void (*matrices)(const WhiteningTransformCall&, int64_t begin, int64_t end);               // groups
  void (*panels)(const WhiteningTransformCall&, int64_t begin, int64_t end, void* scratch);  // of groups
};

struct WhiteningKernels {
  WhiteningMomentsKernels (*moments)(const WhiteningMomentsCall&);
  WhiteningTransformKernels (*transform)(const WhiteningTransformCall&);
};

// The best that this machine runs (backend.cpp).
const WhiteningKernels& whitening_kernels();

}  // namespace torchfastnorm::cpu
