// launch(): checks what a device would check, then runs the grid, group of blocks by group of blocks. Blocks that
// run one after the other share nothing but global memory, so a kernel that spins on another block never ends here:
// only clusters and cooperative grids may wait for each other.
#pragma once
#include <pthread.h>
#include <sys/mman.h>

#include <tuple>
#include <utility>

#include "access.h"
#include "fibers.h"

namespace cudasim {

inline void grow_pool(size_t count) {
  constexpr size_t kGuard = 4096;  // below each stack: an overflow faults
  while (g.pool.size() < count) {
    auto fiber = std::make_unique<Fiber>();
    void* memory =
        mmap(nullptr, kStackBytes + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE)) throw Error("no memory for the threads' stacks");
    fiber->stack = static_cast<char*>(memory) + kGuard;
    prepare(fiber.get(), g.pool.size());
#if CUDASIM_TSAN
    fiber->tsan = __tsan_create_fiber(0);
#endif
    g.pool.push_back(std::move(fiber));
  }
}

inline std::string describe_deadlock(size_t first, size_t count) {
  std::vector<std::pair<std::string, unsigned>> places;
  for (size_t i = first; i < first + count; i++) {
    const Fiber& fiber = *g.pool[i];
    if (fiber.done || !fiber.waits_for) continue;
    const std::string place =
        std::string(fiber.waits_for) + " at " + fiber.where.file_name() + ":" + std::to_string(fiber.where.line());
    const auto known = std::find_if(places.begin(), places.end(), [&](const auto& p) { return p.first == place; });
    if (known == places.end())
      places.emplace_back(place, 1);
    else
      known->second++;
  }
  std::string text = "deadlock in kernel " + std::string(g.config.name) + ": " + std::to_string(g.alive) +
                     " threads wait for others that never arrive:";
  for (const auto& [place, threads] : places) text += "\n  " + std::to_string(threads) + " threads in " + place;
  return text;
}

inline Block& set_up_block(size_t i, uint3 index, unsigned threads, unsigned cluster_size) {
  if (g.blocks.size() <= i) g.blocks.emplace_back();
  Block& block = g.blocks[i];
  block.index = index;
  block.alive = threads;
  block.exit = {};
  block.barrier.reset(threads);
  block.warps.resize((threads + 31) / 32);
  for (Warp& warp : block.warps) {
    warp.arrived = 0;
    warp.edge = {};
    warp.generation = 0;
  }
  if (g.clusters.size() <= i / cluster_size) g.clusters.emplace_back();
  Cluster& cluster = g.clusters[i / cluster_size];
  if (i % cluster_size == 0) {
    cluster.blocks.clear();
    cluster.barrier.reset(threads * cluster_size);
  }
  cluster.blocks.push_back(&block);
  block.cluster = &cluster;
  block.cluster_rank = unsigned(i % cluster_size);
  return block;
}

// Runs these blocks together, to their end.
inline void run_group(const std::vector<uint3>& indices) {
  const dim3 dim = g.config.block;
  const unsigned threads = dim.x * dim.y * dim.z;
  const size_t count = size_t(threads) * indices.size();
  size_t first = 0;
#if CUDASIM_TSAN
  // Blocks that run one after the other are not ordered on a GPU: each gets fibers of its own for as long as the
  // window reaches, else ThreadSanitizer would take the reuse for an order.
  if ((g.window += count) + count > options().race_window) g.window = 0;
  first = g.window;
#endif
  grow_pool(first + count);
  std::vector<Fiber*> all;
  all.reserve(count);
  for (size_t i = 0; i < indices.size(); i++) {
    Block& block = set_up_block(i, indices[i], threads, g.config.cluster);
    for (unsigned t = 0; t < threads; t++) {
      Fiber* fiber = g.pool[first + all.size()].get();
      fiber->block = &block;
      fiber->thread = make_uint3(t % dim.x, t / dim.x % dim.y, t / (dim.x * dim.y));
      fiber->linear = t;
      fiber->lane = t % 32;
      fiber->warp = t / 32;
      fiber->rank = unsigned(all.size());
      fiber->done = false;
      fiber->waits_for = nullptr;
      all.push_back(fiber);
    }
  }
  g.grid_barrier.reset(unsigned(count));
  g.alive = unsigned(count);
  g.ready.clear();
  g.next_ready = 0;
  make_ready(all.data(), all.size());
  switch_to(nullptr, take_ready());
  if (g.alive) {  // back here, and nobody can run
    if (!g.error) g.deadlock = describe_deadlock(first, count);
    g.ready.clear();
    g.next_ready = 0;
    for (Fiber* fiber : all)
      if (!fiber->done) switch_to(nullptr, fiber);
  }
  for (size_t i = 0; i < indices.size(); i++) free_shared(g.blocks[i]);
  if (std::exception_ptr error = std::exchange(g.error, nullptr)) {
    g.deadlock.clear();
    std::rethrow_exception(error);
  }
  if (std::string deadlock = std::exchange(g.deadlock, {}); !deadlock.empty()) throw Error(deadlock);
}

inline void check(const LaunchConfig& config) {
  const Options& device = options();
  const auto refuse = [&](const std::string& why) {
    throw Error("launch of kernel " + std::string(config.name) + ": " + why);
  };
  const dim3 grid = config.grid, block = config.block;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    refuse("invalid block of " + std::to_string(threads) + " threads");
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    refuse("invalid grid " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z));
  if (config.smem > device.shared_bytes)
    refuse(std::to_string(config.smem) + " bytes of dynamic shared memory, the device has " +
           std::to_string(device.shared_bytes));
  if (config.cluster == 0 || (config.cluster > 1 && int(config.cluster) > device.max_cluster))
    refuse("cluster of " + std::to_string(config.cluster) + " blocks, the device allows " +
           std::to_string(device.max_cluster));
  if (grid.x % config.cluster) refuse("the grid is not a multiple of the cluster");
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  const uint64_t per_sm = std::min<uint64_t>(
      {kThreadsPerSm / threads, kBlocksPerSm, kSharedBytesPerSm / (config.smem + kReservedSharedBytes)});
  const uint64_t resident = uint64_t(device.sm_count) * per_sm;
  if (config.cooperative && blocks > resident)
    refuse("a cooperative grid of " + std::to_string(blocks) + " blocks, the device holds " + std::to_string(resident));
}

inline void record(const LaunchConfig& config) {
  Counters& all = counters_now;
  const std::string name = *config.name ? config.name : "(no name)";
  all.current = &all.kernels[name];
  all.current->launches++;
  if (all.launches.size() < Counters::kMostRecords)
    all.launches.push_back({name,
                            {config.grid.x, config.grid.y, config.grid.z},
                            {config.block.x, config.block.y, config.block.z},
                            config.cluster,
                            config.smem,
                            config.cooperative});
}

// Tells the sanitizers where the calling thread stands: its stack, and that a launch orders memory at both ends.
struct LaunchScope {
  LaunchScope() {
#if CUDASIM_ASAN
    pthread_attr_t attributes;
    void* low;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &low, &g.main_stack_bytes);
    pthread_attr_destroy(&attributes);
    g.main_stack = low;
#endif
#if CUDASIM_TSAN
    g.main_tsan = __tsan_get_current_fiber();
#endif
    release(&launch_edge);
    ignore_accesses();
  }
  ~LaunchScope() {
    counters_now.current = &counters_now.outside;
    watch_accesses();
    acquire(&end_edge);
    for (char* memory : g.retired) std::free(memory);
    g.retired.clear();
  }
};

inline void run_grid() {
  const dim3 grid = g.config.grid;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  const uint64_t together = g.config.cooperative ? blocks : g.config.cluster;
  std::vector<uint64_t> groups(blocks / together);
  for (uint64_t i = 0; i < groups.size(); i++) groups[i] = i;
  if (options().order == Order::reverse) std::reverse(groups.begin(), groups.end());
  if (options().order == Order::random) std::shuffle(groups.begin(), groups.end(), g.random);
  std::vector<uint3> indices(together);
  for (uint64_t group : groups) {
    for (uint64_t i = 0; i < together; i++) {
      const uint64_t linear = group * together + i;
      indices[i] = make_uint3(unsigned(linear % grid.x), unsigned(linear / grid.x % grid.y),
                              unsigned(linear / (uint64_t(grid.x) * grid.y)));
    }
    run_group(indices);
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t, Arguments&&... arguments) {
  std::lock_guard<std::recursive_mutex> lock(g.mutex);
  if (g.current) throw Error("a launch from device code");
  check(config);
  using Call = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  Call call{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)};
  g.config = config;
  g.block_dim = config.block;
  g.grid_dim = config.grid;
  g.argument = &call;
  g.invoke = [](void* p) { std::apply(static_cast<Call*>(p)->first, static_cast<Call*>(p)->second); };
  g.random.seed(options().seed);
  record(config);
  LaunchScope scope;
  run_grid();
}

}  // namespace cudasim
