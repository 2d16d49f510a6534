// The choice of regime for row norms: see interface/row_plan.h for what the words mean, docs/reductions.md for
// drawings, and row_tiles.h for the constants. The order of the tests below is the order of preference.
#include "../interface/row_plan.h"

#include <algorithm>

#include "plan_choice.h"
#include "row_tiles.h"

namespace torchfastnorm {
namespace {

constexpr int64_t max_grid = 0x7fffffff;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t whole_warps(int64_t threads) { return ceil_div(threads, 32) * 32; }
int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}
// Short rows: `lanes` threads a row, and a persistent grid of as many blocks as are resident, or as rows there are.
int vectors_per_lane(int64_t vectors) { return vectors <= 32 ? 1 : cuda::warp_vectors; }

// Blocks of so much shared memory on a multiprocessor, which has a KB more than a block may have, and takes one of
// each.
int64_t by_shared_memory(const DeviceLimits& device, int64_t bytes) {
  return (device.shared_bytes + 1024) / (bytes + 1024);
}

RowPlan warp_plan(const RowProblem& problem, int64_t vectors, int rows_in_flight, int threads, int blocks,
                  int static_bytes, const DeviceLimits& device) {
  RowPlan plan{};
  plan.residency = Residency::Warp;
  plan.vectors = vectors_per_lane(vectors);
  plan.lanes = int(power_of_two_from(ceil_div(vectors, plan.vectors)));
  plan.rows_in_flight = rows_in_flight;
  plan.threads = cuda::chosen_threads(problem.choice, 32, threads, threads);
  plan.cluster = cuda::chosen_cluster(problem.choice, 1, 1);
  const int64_t resident = device.multiprocessors *
                           std::min<int64_t>(blocks * (threads / plan.threads), by_shared_memory(device, static_bytes));
  const int64_t useful = ceil_div(problem.rows, int64_t(plan.threads / plan.lanes) * rows_in_flight);
  plan.blocks = cuda::chosen_blocks(problem.choice, 1, resident, std::min(useful, resident));
  plan.kept_vectors = vectors;
  return plan;
}

// Rows that are worked on at a time, each by a cluster.
int64_t resident_clusters(const DeviceLimits& device, int cluster, int64_t blocks_per_multiprocessor) {
  for (int i = 0; i < 4; ++i)
    if (cluster == 2 << i && device.resident_clusters[i] > 0)
      return device.resident_clusters[i] * blocks_per_multiprocessor;
  return std::max<int64_t>(device.multiprocessors * blocks_per_multiprocessor / cluster, 1);
}

RowPlan forward_plan(const RowProblem& problem, const DeviceLimits& device);
RowPlan backward_plan(const RowProblem& problem, const DeviceLimits& device);

}  // namespace

RowPlan plan_row_forward(const RowProblem& problem, const DeviceLimits& device) {
  return cuda::with_choice(forward_plan, problem, device);
}
RowPlan plan_row_backward(const RowProblem& problem, const DeviceLimits& device) {
  return cuda::with_choice(backward_plan, problem, device);
}

RowTypes row_types(DType x_type, DType h_type, DType y_type, DType param_type) {
  const bool alike = x_type == h_type && y_type == h_type && (param_type == h_type || param_type == DType::Float);
  const bool residual_stream = x_type == DType::BFloat16 && y_type == x_type && h_type == DType::Float &&
                               (param_type == x_type || param_type == DType::Float);
  bool general = h_type == DType::Double || !(alike || residual_stream);
#if defined(TORCHFASTNORM_FEWER_TYPES)  // builds under sanitizers: the kernels that are left are the same code
  general |= residual_stream || h_type == DType::Half;
#endif
  return {general, general ? accumulator_of(h_type) : h_type};
}

namespace {

RowPlan forward_plan(const RowProblem& problem, const DeviceLimits& device) {
  using namespace cuda;
  const int64_t vectors = ceil_div(problem.cols, elements_per_vector(problem.kept));
  RowPlan plan{};
  plan.lanes = 32;
  plan.rows_in_flight = 1;
  plan.cluster = 1;
  plan.kept_vectors = vectors;

  const PlanChoice& choice = problem.choice;
  require(!chosen(choice, Residency::Streamed), "only backward is streamed");
  plan.static_bytes = forward_static_bytes;
  plan.registers = registers_within(forward_block_threads, 1);
  if (vectors <= 32 * warp_vectors && allowed(choice, Residency::Warp)) {
    plan = warp_plan(problem, vectors, forward_rows_in_flight(vectors_per_lane(vectors)), forward_warp_threads,
                     forward_warp_blocks, 0, device);
    plan.registers = registers_within(forward_warp_threads, forward_warp_blocks);
    return plan;
  }

  require(!chosen(choice, Residency::Warp), "a row is too long for a warp");

  // Blocks that share a row: as few as keep 32 KB each; 48 KB each rather than 16 blocks, of which few are resident.
  const int64_t block_vectors = int64_t(forward_block_threads) * forward_block_vectors;
  if (device.cluster_blocks > 1) {
    const int64_t wanted = power_of_two_from(ceil_div(vectors, forward_cluster_vectors));
    plan.cluster = int(std::min<int64_t>({wanted, 8, device.cluster_blocks}));
    if (vectors > block_vectors * plan.cluster) plan.cluster = std::min(16, device.cluster_blocks);
  }
  plan.cluster = chosen_cluster(choice, device.cluster_blocks, plan.cluster);
  const int64_t slice = ceil_div(vectors, plan.cluster);
  if (slice <= block_vectors && allowed(choice, Residency::Registers)) {
    plan.residency = Residency::Registers;
    plan.vectors = forward_block_vectors;
    const int64_t least = whole_warps(ceil_div(slice, plan.vectors));
    plan.threads = chosen_threads(choice, least, forward_block_threads, least);
  } else {
    require(!chosen(choice, Residency::Registers), "a row is too long for the registers of its blocks");
    plan.residency = Residency::Shared;
    plan.threads = chosen_threads(choice, 32, forward_block_threads, forward_block_threads);
    const int64_t kept = std::min<int64_t>(slice, (device.shared_bytes - forward_static_bytes) / 16);
    plan.shared_bytes = kept * 16;
    plan.kept_vectors = std::min(vectors, kept * plan.cluster);
  }
  const int64_t most = std::min(problem.rows, max_grid / plan.cluster) * plan.cluster;
  plan.blocks = chosen_blocks(choice, plan.cluster, most, most);
  return plan;
}

RowPlan backward_plan(const RowProblem& problem, const DeviceLimits& device) {
  using namespace cuda;
  const int64_t columns = elements_per_vector(problem.kept);
  const int64_t vectors = ceil_div(problem.cols, columns);
  const int register_vectors = backward_vectors(problem.kept);
  const int64_t block_vectors = int64_t(backward_block_threads) * register_vectors;
  const PlanChoice& choice = problem.choice;
  RowPlan plan{};
  plan.lanes = 32;
  plan.rows_in_flight = 1;
  plan.cluster = 1;
  plan.kept_vectors = vectors;

  plan.static_bytes = backward_static_bytes;
  plan.registers = registers_within(backward_block_threads, 1);
  if (vectors <= 32 * warp_vectors && allowed(choice, Residency::Warp)) {
    const int per_lane = vectors_per_lane(vectors);
    plan = warp_plan(problem, vectors, backward_rows_in_flight(per_lane), backward_warp_threads(per_lane),
                     backward_warp_blocks, backward_static_bytes, device);
    plan.partial_rows = plan.blocks;
    plan.static_bytes = backward_static_bytes;
    plan.registers = registers_within(backward_warp_threads(per_lane), backward_warp_blocks);
    plan.cooperative = true;
    return plan;
  }

  require(!chosen(choice, Residency::Warp), "a row is too long for a warp");

  const int64_t wanted = power_of_two_from(ceil_div(vectors, block_vectors));
  plan.cluster = chosen_cluster(choice, device.cluster_blocks, std::min<int64_t>(wanted, device.cluster_blocks));
  const int64_t slice = ceil_div(vectors, plan.cluster);
  const int sums = problem.centered ? 2 : 1;
  const int64_t sum_bytes = slice * sums * columns * size_of(accumulator_of(problem.kept));
  int64_t blocks_per_multiprocessor = 1;
  if (slice <= block_vectors && allowed(choice, Residency::Registers)) {
    plan.residency = Residency::Registers;
    plan.vectors = register_vectors;
    const int64_t least = whole_warps(ceil_div(slice, plan.vectors));
    plan.threads = chosen_threads(choice, least, backward_block_threads, least);
    blocks_per_multiprocessor =
        std::min<int64_t>(backward_block_threads / plan.threads, by_shared_memory(device, backward_static_bytes));
  } else if (sum_bytes <= device.shared_bytes - backward_static_bytes && allowed(choice, Residency::Shared)) {
    require(!chosen(choice, Residency::Registers), "a row is too long for the registers of its blocks");
    plan.residency = Residency::Shared;
    plan.threads = chosen_threads(choice, 32, backward_block_threads, backward_block_threads);
    plan.shared_bytes = sum_bytes;
  } else {
    require(allowed(choice, Residency::Streamed), "a row is too long to stay on the chip");
    plan.residency = Residency::Streamed;
    plan.registers = registers_within(column_threads, column_blocks);
    plan.cluster = chosen_cluster(choice, 1, 1);
    plan.threads = chosen_threads(choice, column_threads, column_threads, column_threads);
    plan.kept_vectors = 0;
    const int64_t tiles = ceil_div(vectors, column_threads);
    const int64_t blocks = int64_t(device.multiprocessors) * column_blocks;
    const int64_t most = std::min<int64_t>(std::max<int64_t>(problem.rows, 1), 65535);
    plan.blocks = chosen_blocks(choice, tiles, tiles * most, tiles * std::clamp<int64_t>(blocks / tiles, 1, most));
    plan.partial_rows = plan.blocks / tiles;
    return plan;
  }
  const int64_t resident = resident_clusters(device, plan.cluster, blocks_per_multiprocessor);
  const int64_t most = std::min(problem.rows, resident) * plan.cluster;
  plan.blocks = chosen_blocks(choice, plan.cluster, most, most);
  plan.partial_rows = plan.blocks / plan.cluster;
  plan.cooperative = plan.cluster == 1;
  return plan;
}

}  // namespace
}  // namespace torchfastnorm
