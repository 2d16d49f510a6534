// The data of a running launch: threads, warps, blocks, clusters, and who waits for what.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "cuda_headers.h"
#include "options.h"

namespace cudasim {

using Location = std::source_location;

struct Block;

struct Fiber {  // one CUDA thread
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  Block* block = nullptr;
  uint3 thread{};                                     // threadIdx
  unsigned linear = 0, lane = 0, warp = 0, rank = 0;  // rank: among all threads that are alive together
  bool done = false;
  const char* waits_for = nullptr;
  Location where;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
};

// An address for ThreadSanitizer's release and acquire: two of them, taken in turn, because a thread may arrive at
// the next barrier before another has left this one. Never reused within a launch.
struct EdgeAddress {
  char* p = nullptr;
  void* of(uint64_t generation);
};

struct Barrier {
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
  Location first;
  uint64_t generation = 0;
  EdgeAddress edge;

  void reset(unsigned threads) {
    expected = threads;
    waiting.clear();
    generation = 0;
    edge = {};
  }
};

enum class WarpOp : uint8_t { none, sync, shuffle, ballot, collective };

struct Warp {  // what each lane that waits in a warp operation brought along
  uint32_t arrived = 0;
  uint32_t mask[32];
  WarpOp op[32];
  uint8_t source[32];
  uint64_t value[32], result[32];
  void (*work)(void* const (&lanes)[32]);  // of WarpOp::collective
  Fiber* fiber[32];
  EdgeAddress edge;
  uint64_t generation = 0;
};

struct SharedVariable {
  const void* key;  // an address that stands for the variable
  char* raw;
  char* data;
  size_t size, align;
};

struct Cluster;
struct Block {
  uint3 index{};  // blockIdx
  unsigned cluster_rank = 0;
  Cluster* cluster = nullptr;
  std::vector<SharedVariable> shared;
  size_t shared_bytes = 0, static_shared_bytes = 0;
  unsigned alive = 0;
  EdgeAddress exit;
  Barrier barrier;
  std::vector<Warp> warps;
};

struct Cluster {
  std::vector<Block*> blocks;
  Barrier barrier;
};

struct LaunchConfig {
  dim3 grid, block;
  size_t smem = 0;
  unsigned cluster = 1;      // blocks per cluster, along x
  bool cooperative = false;  // the whole grid is alive together: this_grid().sync() is allowed
  const char* name = "";     // of the kernel, for counters and messages
};

struct State {
  std::recursive_mutex mutex;  // one launch at a time
  Fiber* current = nullptr;

  // the built-in variables of the thread that runs
  uint3 thread_index{}, block_index{};
  dim3 block_dim, grid_dim;

  // the launch
  LaunchConfig config;
  void (*invoke)(void*) = nullptr;
  void* argument = nullptr;
  std::mt19937_64 random;

  // the blocks that are alive together
  std::vector<Fiber*> ready;  // from next_ready on
  size_t next_ready = 0;
  unsigned alive = 0;
  std::deque<Block> blocks;  // reused: never shrinks
  std::deque<Cluster> clusters;
  Barrier grid_barrier;
  std::exception_ptr error;
  std::string deadlock;

  // the thread that called launch()
  void* main_stack_pointer = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  void* main_tsan = nullptr;

  std::vector<std::unique_ptr<Fiber>> pool;
  size_t window = 0;           // first fiber of this group of blocks (ThreadSanitizer)
  std::vector<char*> retired;  // memory that ThreadSanitizer must not see again before the launch ends
};
inline State g;

inline void* EdgeAddress::of([[maybe_unused]] uint64_t generation) {
#if CUDASIM_TSAN
  if (!p) g.retired.push_back(p = static_cast<char*>(std::malloc(16)));
  return p + 8 * (generation & 1);
#else
  return nullptr;
#endif
}

}  // namespace cudasim
