// How a norm of feature maps runs on a GPU. Plain arithmetic on the problem and the device, as row_plan.h.
//
// A team of blocks goes through moments (backward: sums), combine and apply together. What its threads hold at a time,
// `plane_slots` vectors of 16 bytes each, is a round; a round is kept in shared memory from the first pass to the last,
// as far as it has room, and read again otherwise.
//
//   Team::Cluster   a block or a cluster takes a few sets (a task) at a time and keeps all of its rounds: one read of x
//   Team::Grid      the whole grid takes everything, with two grid barriers; rounds that no block has room for are
//                   read again, the last first, so that what is still in L2 comes from there
//
// How a set is cut into pieces depends on its own size, the type and the device, never on the number of samples
// (Sets::Group, Sets::Instance): that makes a sample's result independent of the batch around it.
#pragma once
#include "plane_norm.h"
#include "row_plan.h"

namespace torchfastnorm {

enum class Team : int8_t { Cluster, Grid };

struct PlaneProblem {
  PlaneShape shape;
  Sets sets;
  DType type;
  bool batch_statistics;
  bool ordered;  // something must happen after every set is finished: Team::Grid
  int kept;      // tensors that apply needs again: 1 forward, 2 or 3 backward
  int staged;    // tensors that apply alone reads: forward's residual
  PlanChoice choice = {};
};

struct PlanePlan {
  Team team;
  bool cooperative;      // grid barriers inside
  int threads;           // per block
  int cluster;           // blocks that share a task
  int64_t blocks;        // of the grid; a multiple of `cluster`
  int64_t shared_bytes;  // dynamic
  int static_bytes;      // shared memory beside it, at most
  int registers;         // of a thread, at most: what the kernel's launch bounds leave
  Layout layout;         // of the kernel: spatial 1 is both
  int lanes;             // threads that share a piece (ChannelsFirst) or a row of a tile (ChannelsLast)
  int slots_per_piece;   // ChannelsFirst: vectors of a piece that one thread has, 1 or plane_slots
  int64_t chunks;        // ChannelsFirst: pieces of a plane. ChannelsLast: slabs of a set's rows (Cluster: its blocks)
  int64_t piece;         // ChannelsFirst: elements of a piece, the last one of a plane may have fewer
  int64_t tile;          // ChannelsLast: channels of a slab
  int64_t slab;          // what a block works on at a time: pieces (ChannelsFirst) or rows (ChannelsLast)
  int64_t rounds;        // of a slab
  int64_t kept_rounds;   // of a block, in shared memory; Team::Grid has room for one more, read again each time
  int64_t sets_per_task;
  int64_t tasks;          // Team::Cluster
  int64_t slabs;          // Team::Grid: of the whole problem
  int64_t entries;        // of the table of moments or sums in global memory (Team::Grid; parameters' gradients)
  int64_t local_entries;  // of a slab, in shared memory (Team::Cluster)
};

PlanePlan plan_plane_norm(const PlaneProblem&, const DeviceLimits&);

}  // namespace torchfastnorm
