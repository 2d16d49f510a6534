// How the two passes of whitening run on a GPU. Plain arithmetic on the problem and the device, as row_plan.h.
//
// Channels are taken by tiles of 32 or 64. A tile holds `bundle` whole groups of `width` channels, or a group fills
// `tiles` of them; the groups that share tiles are a bundle. Positions are taken by panels: a tile's channels at
// `positions` positions, in shared memory.
//
//   moments     a block takes a pair of tiles of one bundle over a slab of panels, of a covariance only pairs on and
//               above the diagonal. A second launch merges the slabs.
//   transform   a block takes a tile of outputs, and every `strides`th panel
//
// How many slabs there are depends on the device: statistics go over the whole batch anyway. A transformed position
// does not depend on the others.
#pragma once
#include "plane_norm.h"
#include "row_plan.h"

namespace torchfastnorm {

struct WhiteningProblem {
  PlaneShape shape;
  DType type;
  bool two_tensors;  // moments: v is not u. transform: there is a v
};

struct WhiteningPlan {
  Layout layout;   // of the kernel: spatial 1 is both
  int tile;        // channels
  int positions;   // of a panel (ChannelsFirst: less what the last vectors of planes leave empty)
  int threads;     // per block
  int64_t bundle;  // groups
  int64_t bundles;
  int64_t tiles;                          // of a bundle
  int64_t pairs;                          // moments: of tiles, of a bundle
  int64_t panels;                         // of a tile
  int64_t slab;                           // moments: panels of a block
  int64_t slabs;                          // moments: of a pair of tiles
  int64_t strides;                        // transform: blocks that share the panels of a tile
  int64_t blocks;                         // of the grid
  int64_t shared_bytes;                   // dynamic
  int static_bytes;                       // shared memory beside it, at most
  int registers;                          // of a thread, at most: what the kernel's launch bounds leave
  int64_t finish_blocks, finish_threads;  // moments: of the second launch
  int64_t partial_bytes;                  // moments: of what the slabs leave: written once, read once
  int64_t read_bytes, written_bytes;      // of u, v and y, caches left out; docs/reductions.md
};

WhiteningPlan plan_whitening_moments(const WhiteningProblem&, const DeviceLimits&);
WhiteningPlan plan_whitening_transform(const WhiteningProblem&, const DeviceLimits&);

}  // namespace torchfastnorm
