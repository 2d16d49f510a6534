// The part of cooperative_groups that the kernels use: whole block, cluster (with distributed shared memory), grid.
#pragma once
#include "shared_memory.h"
#include "sync.h"

namespace cooperative_groups {

struct thread_block {
  void sync(cudasim::Location where = cudasim::Location::current()) const {
    cudasim::arrive_and_wait(cudasim::g.current->block->barrier, "block.sync()", where, true);
  }
  unsigned thread_rank() const { return cudasim::g.current->linear; }
  unsigned size() const { return cudasim::g.current->block->barrier.expected; }
};

struct cluster_group {
  void sync(cudasim::Location where = cudasim::Location::current()) const {
    cudasim::arrive_and_wait(cudasim::g.current->block->cluster->barrier, "cluster.sync()", where, false);
  }
  unsigned block_rank() const { return cudasim::g.current->block->cluster_rank; }
  unsigned num_blocks() const { return unsigned(cudasim::g.current->block->cluster->blocks.size()); }
  template <class T>
  T* map_shared_rank(T* p, unsigned rank, cudasim::Location where = cudasim::Location::current()) const {
    return cudasim::map_shared_rank(p, rank, where);
  }
};

struct grid_group {
  void sync(cudasim::Location where = cudasim::Location::current()) const {
    if (!cudasim::g.config.cooperative) cudasim::fail("grid.sync() in a launch that is not cooperative", where);
    cudasim::arrive_and_wait(cudasim::g.grid_barrier, "grid.sync()", where, false);
  }
};

inline thread_block this_thread_block() { return {}; }
inline cluster_group this_cluster() { return {}; }
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
