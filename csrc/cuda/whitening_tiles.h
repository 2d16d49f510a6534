// The tile sizes that whitening_plan.cpp plans with and the whitening kernels are compiled for.
#pragma once
#include <cstdint>

namespace torchfastnorm::cuda {

// Four warps multiply; a tile is 64 channels, or 32 where the channels that are mixed with each other are no more.
constexpr int whitening_threads = 128;
constexpr int wide_tile = 64;
constexpr int narrow_tile = 32;

// A panel is a tile's channels by as many positions as make 8 KB of the tensor: four vectors of 16 bytes a thread.
constexpr int panel_bytes = 8192;
constexpr int panel_loads = panel_bytes / 16 / whitening_threads;
constexpr int panel_positions(int tile, int64_t size) { return int(panel_bytes / (tile * size)); }

// Blocks that a multiprocessor is to hold (__launch_bounds__): while some wait for memory, others multiply. Moments
// keep two panels on their way and sums besides, which four blocks' registers do not hold.
constexpr int moments_blocks = 3;
constexpr int transform_blocks = 4;

constexpr int transform_static_bytes = 16;

// A slab is at least so many panels, so that what it leaves, a tile by a tile of the accumulation type, is little
// beside what it reads.
constexpr int least_slab_panels = 16;
// And no more than so many: rounding errors of a long sum grow with its length, and slabs are merged as a tree's
// branches.
constexpr int most_slab_panels = 256;

// The merge of slabs: 32 neighbouring co-moments a block, the slabs cut among so many warps.
constexpr int finish_warps = 8;

// What a slab of moments leaves in global memory: the number of positions; anchors of both tiles, and how far the means
// are from them; co-moments.
constexpr int64_t record_anchors = 4;
constexpr int64_t record_offsets(int64_t tile) { return record_anchors + 2 * tile; }
constexpr int64_t record_products(int64_t tile) { return record_offsets(tile) + 2 * tile; }
constexpr int64_t record_values(int64_t tile) { return record_products(tile) + tile * tile; }

}  // namespace torchfastnorm::cuda
