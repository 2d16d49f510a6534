// The tile sizes that plane_plan.cpp plans with and the plane kernels are compiled for.
#pragma once
#include <cstdint>

#include "row_tiles.h"

namespace torchfastnorm::cuda {

// A thread has four vectors on their way at a time: 64 bytes.
constexpr int plane_slots = 4;

// A piece belongs to a warp or a part of one.
constexpr int piece_vectors = 32 * plane_slots;

constexpr int cluster_team_threads = 256;
// As many bytes on their way with two tensors as with one, and registers for what is done with them.
constexpr int grid_team_threads(int tensors) { return tensors > 1 ? 256 : 512; }

// Team::Cluster: a block takes two rounds (32 KB) as long as 8 blocks are enough, so that a multiprocessor holds
// several blocks and the loads of one overlap the stores of another.
constexpr int wanted_rounds = 2;
constexpr int most_sets_per_task = 1024;

// Team::Grid, ChannelsLast: a row of a slab is up to 512 contiguous bytes; a slab has enough rounds for its entries to
// be few beside its data.
constexpr int grid_lanes = 32;
constexpr int least_slab_rounds = 4;
constexpr int most_slab_rounds = 16;

// Shared memory beside the rounds, in bytes of type A; see PlaneShared in plane_norm.cuh.
constexpr int64_t entry_values = 4;                                   // count and two numbers, padded to a power of two
constexpr int64_t tree_values(int vector) { return 3 * vector + 1; }  // of a thread that hands its channels on
constexpr int64_t tree_bytes(int vector, int64_t size, int64_t threads) {
  return tree_values(vector) * (threads / 2) * size;
}
constexpr int column_values = 5;  // ChannelsLast: that a channel of a tile is normalised with, or its gradient made
constexpr int plane_static_bytes = 4096;  // static shared memory of these kernels, at most (double)

}  // namespace torchfastnorm::cuda
