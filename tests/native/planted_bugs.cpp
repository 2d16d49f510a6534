// Kernels with one bug each, and the same kernels without it: `planted_bugs NAME bug|twin [ORDER SEED]`.
// Prints "nan" or a hash of what the kernel wrote, or "error: ..." (exit status 3) for a cudasim::Error; exits with
// 4 when the name is unknown. test_planted_bugs.py says which tool must catch which bug; every tool must let the twin
// pass.
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/common/port.h"

using namespace torchfastnorm::cuda;

namespace {

constexpr unsigned kAll = 0xffffffffu;

// ---- races

template <bool BUG>
__global__ void barrier_before_read(const float* x, float* y) {
  SHARED(float, s, [64]);
  s[threadIdx.x] = x[threadIdx.x];
  if (!BUG) __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}

template <bool BUG>
__global__ void barrier_before_write(const float* x, float* y) {
  SHARED(float, s, [64]);
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float v = s[63 - threadIdx.x];
  if (!BUG) __syncthreads();  // else a fast thread overwrites what a slow one has not read
  s[threadIdx.x] = v * 2;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x] + v;
}

template <bool BUG>
__global__ void shuffle_is_no_syncwarp(const float* x, float* y) {
  SHARED(float, s, [32]);
  s[threadIdx.x] = x[threadIdx.x];
  const float unused = __shfl_xor_sync(kAll, 1.0f, 1);
  if (!BUG) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x] * unused;
}

template <bool BUG>
__global__ void add_from_several_blocks(float* y) {
  if (threadIdx.x != 0) return;
  if (BUG)
    y[0] += 1.0f;
  else
    atomicAdd(y, 1.0f);
}

// The block that takes the last ticket adds up what all of them wrote.
template <bool BUG>
__global__ void fence_before_ticket(float* partial, unsigned* ticket, float* y) {
  SHARED(int, is_last, [1]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = float(blockIdx.x + 1);
    if (!BUG) __threadfence();
    is_last[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (!BUG) __threadfence();
  }
  __syncthreads();
  if (!is_last[0] || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) sum += partial[i];
  y[0] = sum;
}

template <bool BUG>
__global__ void grid_sync_between_stages(float* partial, float* y) {
  if (threadIdx.x == 0) partial[blockIdx.x] += float(blockIdx.x + 1);
  if (!BUG) cooperative_groups::this_grid().sync();
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) sum += partial[i];
  y[0] = sum;
}

// ---- clusters

template <bool BUG>
__global__ void cluster_sync_before_exit(float* y) {
  auto cluster = cooperative_groups::this_cluster();
  SHARED(float, s, [1]);
  if (threadIdx.x == 0) s[0] = float(cluster.block_rank() + 1);
  cluster.sync();
  float sum = 0;
  for (unsigned i = 0; i < cluster.num_blocks(); i++) sum += *cluster.map_shared_rank(&s[0], i);
  y[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (!BUG) cluster.sync();  // else a block may end, and its memory be gone, while others read it
}

template <bool BUG>
__global__ void cluster_sync_before_use(float* y) {
  auto cluster = cooperative_groups::this_cluster();
  SHARED(float, s, [1]);
  if (!BUG) cluster.sync();  // else the other block may not have started
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  if (threadIdx.x == 0) *cluster.map_shared_rank(&s[0], next) = float(next);
  cluster.sync();
  y[blockIdx.x * blockDim.x + threadIdx.x] = s[0];
}

// ---- memory

template <bool BUG>
__global__ void read_in_bounds(const float* x, float* y) {  // x has 256 elements, 64 threads read 4 each
  const float4 v = *reinterpret_cast<const float4*>(x + (threadIdx.x + BUG) * 4);
  y[threadIdx.x] = v.x + v.w;
}

template <bool BUG>
__global__ void write_in_bounds(float* y) {  // y has 256 elements
  y[threadIdx.x * 4 + 3 + BUG] = 1.0f;
}

template <bool BUG>
__global__ void static_shared_in_bounds(float* y) {
  SHARED(float, s, [65 - BUG]);
  s[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x + 1];
}

__global__ void dynamic_shared_in_bounds(float* y) {  // the launch gives 65 floats, or one too few
  DYNAMIC_SHARED(float, s);
  s[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x + 1];
}

template <bool BUG>
__global__ void aligned_load(const float* x, float* y) {
  const float4 v = load_once(reinterpret_cast<const float4*>(x + BUG + threadIdx.x * 4));
  y[threadIdx.x] = v.x;
}

template <bool BUG>
__global__ void aligned_raw_access(const float* x, float* y) {  // past port.h
  const float4 v = *reinterpret_cast<const float4*>(x + BUG + threadIdx.x * 4);
  y[threadIdx.x] = v.x;
}

struct alignas(16) Aligned {
  float v[64];
};
struct Unaligned {
  float v[64];
};
template <bool BUG>
__global__ void aligned_shared_access(float* y) {
  using Floats = std::conditional_t<BUG, Unaligned, Aligned>;
  SHARED(Floats, s, [1]);
  s[0].v[threadIdx.x] = 1.0f;
  __syncthreads();
  const float4 v = *reinterpret_cast<const float4*>(&s[0].v[threadIdx.x / 4 * 4]);
  y[threadIdx.x] = v.x;
}

template <bool BUG>
__global__ void shared_memory_is_set(float* y) {
  SHARED(float, s, [64]);
  if (!BUG || threadIdx.x < 63) s[threadIdx.x] = 0.0f;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

template <bool BUG>
__global__ void wide_row_offset(float* y, int rows, int cols) {  // rows * cols is more than an int holds
  const int64_t last = BUG ? (rows - 1) * cols : int64_t(rows - 1) * cols;
  y[threadIdx.x] = last > 0 ? 1.0f : 2.0f;
}

// ---- barriers and warps that not all threads reach

template <bool BUG>
__global__ void barrier_for_all(float* y) {
  if (!BUG || threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = 1.0f;
}

template <bool BUG>
__global__ void one_barrier(float* y) {
  if (BUG && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  y[threadIdx.x] = 1.0f;
}

template <bool BUG>
__global__ void no_exit_before_barrier(float* y) {
  if (BUG && threadIdx.x >= 40) return;
  __syncthreads();
  y[threadIdx.x] = 1.0f;
}

template <bool BUG>
__global__ void shuffle_for_all(float* y) {
  float v = float(threadIdx.x);
  if (!BUG || threadIdx.x % 32 < 16) v += __shfl_xor_sync(kAll, v, 1);
  y[threadIdx.x] = v;
}

template <bool BUG>
__global__ void lane_in_mask(float* y) {
  const float v = float(threadIdx.x);
  y[threadIdx.x] = v + __shfl_xor_sync(BUG ? 0x0000ffffu : kAll, v, 1);
}

template <bool BUG>
__global__ void source_in_mask(float* y) {
  float v = float(threadIdx.x);
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0x0000ffffu, v, BUG ? 16 : 8);
  y[threadIdx.x] = v;
}

// ---- results that depend on the order

template <bool BUG>
__global__ void fixed_order(const float* x, float* y) {
  if (BUG) {
    atomicAdd(y, x[blockIdx.x * blockDim.x + threadIdx.x]);
  } else if (blockIdx.x == 0 && threadIdx.x == 0) {
    for (unsigned i = 0; i < gridDim.x * blockDim.x; i++) y[0] += x[i];
  }
}

// ---- launches that a device refuses

__global__ void nothing() {}
__global__ void sync_grid() { cooperative_groups::this_grid().sync(); }

// ---- the table

struct Memory {
  std::vector<float> x = std::vector<float>(256), y = std::vector<float>(256), partial = std::vector<float>(8);
  unsigned ticket = 0;
};

template <class... P, class... A>
void run(void (*bug)(P...), void (*twin)(P...), bool is_bug, LaunchConfig config, A... arguments) {
  launch(is_bug ? bug : twin, config, nullptr, arguments...);
}

#define KERNELS(name) name<true>, name<false>, bug

using Case = std::function<void(Memory&, bool bug)>;
LaunchConfig shape(unsigned grid, unsigned block, unsigned cluster = 1, bool cooperative = false, size_t smem = 0) {
  return {
      .grid = grid, .block = block, .smem = smem, .cluster = cluster, .cooperative = cooperative, .name = "planted"};
}

const std::map<std::string, Case> kCases = {
    {"barrier_before_read",
     [](Memory& m, bool bug) { run(KERNELS(barrier_before_read), shape(1, 64), m.x.data(), m.y.data()); }},
    {"barrier_before_write",
     [](Memory& m, bool bug) { run(KERNELS(barrier_before_write), shape(1, 64), m.x.data(), m.y.data()); }},
    {"shuffle_is_no_syncwarp",
     [](Memory& m, bool bug) { run(KERNELS(shuffle_is_no_syncwarp), shape(1, 32), m.x.data(), m.y.data()); }},
    {"add_from_several_blocks",
     [](Memory& m, bool bug) { run(KERNELS(add_from_several_blocks), shape(4, 64), m.y.data()); }},
    {"fence_before_ticket",
     [](Memory& m, bool bug) {
       run(KERNELS(fence_before_ticket), shape(8, 64), m.partial.data(), &m.ticket, m.y.data());
     }},
    {"grid_sync_between_stages",
     [](Memory& m, bool bug) {
       run(KERNELS(grid_sync_between_stages), shape(8, 32, 1, true), m.partial.data(), m.y.data());
     }},
    {"cluster_sync_before_exit",
     [](Memory& m, bool bug) { run(KERNELS(cluster_sync_before_exit), shape(4, 64, 4), m.y.data()); }},
    {"cluster_sync_before_use",
     [](Memory& m, bool bug) { run(KERNELS(cluster_sync_before_use), shape(4, 64, 2), m.y.data()); }},
    {"read_in_bounds", [](Memory& m, bool bug) { run(KERNELS(read_in_bounds), shape(1, 64), m.x.data(), m.y.data()); }},
    {"write_in_bounds", [](Memory& m, bool bug) { run(KERNELS(write_in_bounds), shape(1, 64), m.y.data()); }},
    {"static_shared_in_bounds",
     [](Memory& m, bool bug) { run(KERNELS(static_shared_in_bounds), shape(1, 64), m.y.data()); }},
    {"dynamic_shared_in_bounds",
     [](Memory& m, bool bug) {
       launch(dynamic_shared_in_bounds, shape(1, 64, 1, false, (65 - bug) * sizeof(float)), nullptr, m.y.data());
     }},
    {"aligned_load", [](Memory& m, bool bug) { run(KERNELS(aligned_load), shape(1, 32), m.x.data(), m.y.data()); }},
    {"aligned_raw_access",
     [](Memory& m, bool bug) { run(KERNELS(aligned_raw_access), shape(1, 32), m.x.data(), m.y.data()); }},
    {"aligned_shared_access",
     [](Memory& m, bool bug) { run(KERNELS(aligned_shared_access), shape(1, 64), m.y.data()); }},
    {"shared_memory_is_set", [](Memory& m, bool bug) { run(KERNELS(shared_memory_is_set), shape(1, 64), m.y.data()); }},
    {"wide_row_offset",
     [](Memory& m, bool bug) { run(KERNELS(wide_row_offset), shape(1, 32), m.y.data(), 1 << 16, 1 << 16); }},
    {"barrier_for_all", [](Memory& m, bool bug) { run(KERNELS(barrier_for_all), shape(1, 64), m.y.data()); }},
    {"one_barrier", [](Memory& m, bool bug) { run(KERNELS(one_barrier), shape(1, 64), m.y.data()); }},
    {"no_exit_before_barrier",
     [](Memory& m, bool bug) { run(KERNELS(no_exit_before_barrier), shape(1, 64), m.y.data()); }},
    {"shuffle_for_all", [](Memory& m, bool bug) { run(KERNELS(shuffle_for_all), shape(1, 64), m.y.data()); }},
    {"lane_in_mask", [](Memory& m, bool bug) { run(KERNELS(lane_in_mask), shape(1, 64), m.y.data()); }},
    {"source_in_mask", [](Memory& m, bool bug) { run(KERNELS(source_in_mask), shape(1, 64), m.y.data()); }},
    {"fixed_order", [](Memory& m, bool bug) { run(KERNELS(fixed_order), shape(4, 64), m.x.data(), m.y.data()); }},
    {"block_size", [](Memory&, bool bug) { launch(nothing, shape(1, bug ? 2048 : 1024), nullptr); }},
    {"shared_size", [](Memory&, bool bug) { launch(nothing, shape(1, 32, 1, false, 227 * 1024 + bug), nullptr); }},
    {"cluster_size",
     [](Memory&, bool bug) {
       cudasim::options().max_cluster = bug ? 0 : 8;  // a device without clusters
       launch(nothing, shape(8, 1, 8), nullptr);
     }},
    {"grid_of_whole_clusters", [](Memory&, bool bug) { launch(nothing, shape(bug ? 6 : 8, 1, 4), nullptr); }},
    {"cooperative_grid_fits",
     [](Memory&, bool bug) {
       cudasim::options().sm_count = 1;  // 8 blocks of 1,024 threads are more than ThreadSanitizer can map
       launch(sync_grid, shape(bug ? 3 : 2, 1024, 1, true), nullptr);
     }},
    {"grid_sync_is_cooperative", [](Memory&, bool bug) { launch(sync_grid, shape(4, 1, 1, !bug), nullptr); }},
};

}  // namespace

int main(int count, char** arguments) {
  const auto found = count > 2 ? kCases.find(arguments[1]) : kCases.end();
  if (found == kCases.end()) return 4;
  cudasim::Options& options = cudasim::options();
  if (count > 4) {
    const std::string order = arguments[3];
    options.order = order == "reverse"  ? cudasim::Order::reverse
                    : order == "random" ? cudasim::Order::random
                                        : cudasim::Order::forward;
    options.seed = std::stoull(arguments[4]);
  }
  Memory memory;
  for (int i = 0; i < 256; i++) memory.x[i] = 0.1f * i + 1e3f * (i % 7);
  try {
    found->second(memory, std::string(arguments[2]) == "bug");
  } catch (const cudasim::Error& error) {
    std::printf("error: %s\n", error.what());
    return 3;
  }
  uint64_t hash = 1469598103934665603u;
  bool nan = false;
  for (float v : memory.y) {
    hash = (hash ^ std::bit_cast<uint32_t>(v)) * 1099511628211u;
    nan |= v != v;
  }
  if (nan)
    std::puts("nan");
  else
    std::printf("%016llx\n", static_cast<unsigned long long>(hash));
}
