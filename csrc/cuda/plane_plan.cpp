// The choice of team, pieces and tiles for norms of feature maps: interface/plane_plan.h says what the words mean,
// docs/reductions.md has drawings, plane_tiles.h the constants.
#include "../interface/plane_plan.h"

#include <algorithm>
#include <numeric>

#include "plan_choice.h"
#include "plane_tiles.h"

namespace torchfastnorm {
namespace {

using namespace cuda;

constexpr int64_t max_grid = 0x7fffffff;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// The problem in the words of the kernels.
struct Extent {
  int64_t vector;   // elements of 16 bytes
  int64_t size;     // bytes of an accumulator
  int64_t domains;  // row domains (ChannelsLast): one for Sets::Batch, samples otherwise
  int64_t rows;     // of a domain
  int64_t width;    // channels of a set
};

void cut_planes(const PlaneProblem& problem, const Extent& extent, PlanePlan& plan) {
  const int64_t vectors = ceil_div(std::max<int64_t>(problem.shape.spatial, 1), extent.vector);
  plan.slots_per_piece = vectors <= 32 ? 1 : plane_slots;
  plan.chunks = ceil_div(vectors, piece_vectors);
  const int64_t per_piece = ceil_div(vectors, plan.chunks);
  plan.piece = per_piece * extent.vector;
  plan.lanes = int(power_of_two_from(ceil_div(per_piece, plan.slots_per_piece)));
  plan.entries = problem.shape.samples * problem.shape.channels * plan.chunks;
}
int64_t pieces_per_round(const PlanePlan& plan) {
  return plan.threads / plan.lanes * (plane_slots / plan.slots_per_piece);
}
int64_t rows_per_round(const PlanePlan& plan) { return plan.threads / plan.lanes * plane_slots; }

int64_t tensor_bytes(const PlanePlan& plan) { return int64_t(plan.threads) * plane_slots * 16; }
int64_t round_bytes(const PlaneProblem& problem, const PlanePlan& plan) { return tensor_bytes(plan) * problem.kept; }

// ChannelsLast: what the threads of a tile hand to each other.
int64_t tile_bytes(const Extent& extent, const PlanePlan& plan) {
  if (plan.layout == Layout::ChannelsFirst) return 0;
  return tree_bytes(int(extent.vector), extent.size, plan.threads) +
         column_values * plan.lanes * extent.vector * extent.size;
}

// Shared memory of a cluster's block apart from its rounds.
int64_t fixed_bytes(const Extent& extent, const PlanePlan& plan) {
  const int64_t sets = plan.sets_per_task;
  const int64_t inbox = plan.cluster > 1 ? plan.cluster * sets * entry_values : 0;
  return ((plan.local_entries + sets) * entry_values + inbox) * extent.size + tile_bytes(extent, plan);
}

// Gives a task's `units` (pieces or rows, `per_round` in a round) to a cluster; false where it does not fit into one.
bool share_task(const PlaneProblem& problem, const Extent& extent, const DeviceLimits& device, int64_t units,
                int64_t per_round, PlanePlan& plan) {
  const int64_t limit = device.shared_bytes - plane_static_bytes;
  const int64_t wanted = power_of_two_from(ceil_div(ceil_div(units, per_round), wanted_rounds));
  // 16 blocks only where 8 have no room: few such clusters are resident at a time.
  const int64_t first =
      chosen_cluster(problem.choice, device.cluster_blocks, std::min<int64_t>({wanted, 8, device.cluster_blocks}));
  const int64_t last = problem.choice.cluster > 0 ? first : device.cluster_blocks;
  for (int64_t cluster = first; cluster <= last; cluster *= 2) {
    plan.cluster = int(cluster);
    plan.slab = ceil_div(units, cluster);
    plan.rounds = ceil_div(plan.slab, per_round);
    plan.kept_rounds = plan.rounds;
    plan.local_entries = plan.layout == Layout::ChannelsFirst ? plan.slab : plan.tile;
    plan.shared_bytes =
        plan.rounds * round_bytes(problem, plan) + problem.staged * tensor_bytes(plan) + fixed_bytes(extent, plan);
    if (plan.shared_bytes <= limit) return true;
  }
  return false;
}

bool plan_cluster(const PlaneProblem& problem, const Extent& extent, const DeviceLimits& device, PlanePlan& plan) {
  const PlaneShape& shape = problem.shape;
  const int64_t sets = sets_of(problem.sets, shape);
  plan.team = Team::Cluster;
  plan.static_bytes = plane_static_bytes;
  plan.registers = registers_within(cluster_team_threads, 2);
  plan.threads = chosen_threads(problem.choice, 32, cluster_team_threads, cluster_team_threads);
  require((plan.threads & (plan.threads - 1)) == 0, "threads must be a power of two");
  if (plan.layout == Layout::ChannelsFirst) {
    cut_planes(problem, extent, plan);
    const int64_t pieces = (problem.sets == Sets::Batch ? shape.samples : extent.width) * plan.chunks;
    const int64_t per_round = pieces_per_round(plan);
    // Blocks that share a task share one set.
    plan.sets_per_task = std::clamp<int64_t>(per_round / pieces, 1, std::min<int64_t>(most_sets_per_task, sets));
    if (problem.choice.cluster > 1) plan.sets_per_task = 1;
    if (!share_task(problem, extent, device, plan.sets_per_task * pieces, per_round, plan)) return false;
    plan.tasks = ceil_div(sets, plan.sets_per_task);
  } else {
    // Whole sets, and whole vectors so that every tile is aligned if the first is; 128 bytes or more.
    const int64_t unit = std::lcm(extent.width, extent.vector);
    plan.tile = std::min(ceil_div(8 * extent.vector, unit) * unit, shape.channels);
    plan.lanes = int(power_of_two_from(ceil_div(plan.tile, extent.vector)));
    if (plan.lanes > plan.threads) return false;
    plan.sets_per_task = plan.tile / extent.width;
    if (!share_task(problem, extent, device, extent.rows, rows_per_round(plan), plan)) return false;
    if (plan.cluster > 1 && plan.sets_per_task > plan.threads) return false;  // plane_forward: a thread for each set
    plan.chunks = plan.cluster;
    plan.tasks = extent.domains * ceil_div(shape.channels, plan.tile);
    plan.entries = extent.domains * plan.chunks * shape.channels;
  }
  // Few channels over a large batch: clusters would leave most of the device idle.
  if (problem.sets == Sets::Batch && plan.cluster > 1 && plan.tasks * plan.cluster * 2 < device.multiprocessors &&
      !chosen(problem.choice, Team::Cluster))
    return false;
  const int64_t most = std::min(plan.tasks, max_grid / plan.cluster) * plan.cluster;
  plan.blocks = chosen_blocks(problem.choice, plan.cluster, most, most);
  return true;
}

// False where a block of that many threads has no room for the round that it reads again and what goes with it.
bool plan_grid(const PlaneProblem& problem, const Extent& extent, const DeviceLimits& device, int threads,
               PlanePlan& plan) {
  const PlaneShape& shape = problem.shape;
  const Layout layout = plan.layout;
  plan = {};
  plan.layout = layout;
  plan.team = Team::Grid;
  plan.static_bytes = plane_static_bytes;
  plan.registers = registers_within(grid_team_threads(problem.kept), 1);
  plan.threads = threads;
  plan.cluster = 1;
  plan.tasks = 1;
  int64_t fixed = problem.staged * tensor_bytes(plan) + round_bytes(problem, plan);
  if (layout == Layout::ChannelsFirst) {
    cut_planes(problem, extent, plan);
    plan.slab = pieces_per_round(plan);
    plan.rounds = 1;
    plan.slabs = ceil_div(plan.entries, plan.slab);
  } else {
    plan.lanes = int(std::min<int64_t>(power_of_two_from(ceil_div(shape.channels, extent.vector)), grid_lanes));
    plan.tile = std::min<int64_t>(plan.lanes * extent.vector, shape.channels);
    const int64_t rows = std::max<int64_t>(extent.rows, 1), rounds = ceil_div(rows, rows_per_round(plan));
    plan.rounds = std::clamp<int64_t>(rounds / 64, least_slab_rounds, most_slab_rounds);
    plan.slab = plan.rounds * rows_per_round(plan);
    plan.chunks = ceil_div(rows, plan.slab);
    plan.slabs = extent.domains * plan.chunks * ceil_div(shape.channels, plan.tile);
    plan.entries = extent.domains * plan.chunks * shape.channels;
    fixed += tile_bytes(extent, plan);
  }
  const int64_t room = device.shared_bytes - plane_static_bytes - fixed;
  if (room < 0) return false;
  // An empty tensor has statistics too. All blocks are resident, one on each multiprocessor at least.
  const int64_t most = std::clamp<int64_t>(plan.slabs, 1, device.multiprocessors);
  plan.blocks = chosen_blocks(problem.choice, 1, most, most);
  plan.cooperative = problem.batch_statistics;
  if (problem.batch_statistics)
    plan.kept_rounds = std::min(ceil_div(plan.slabs, plan.blocks) * plan.rounds, room / round_bytes(problem, plan));
  plan.shared_bytes = plan.kept_rounds * round_bytes(problem, plan) + fixed;
  return true;
}

PlanePlan plane_plan(const PlaneProblem& problem, const DeviceLimits& device) {
  const PlaneShape& shape = problem.shape;
  const bool batch = problem.sets == Sets::Batch;
  Extent extent;
  extent.vector = 16 / size_of(problem.type);
  extent.size = size_of(accumulator_of(problem.type));
  extent.domains = batch ? 1 : shape.samples;
  extent.rows = batch ? shape.samples * shape.spatial : shape.spatial;
  extent.width = channels_per_set(problem.sets, shape);
  PlanePlan plan{};
  // With one element a plane the two layouts are one: rows of all channels, or many planes of a sample at once.
  plan.layout = shape.spatial > 1 ? shape.layout : batch ? Layout::ChannelsLast : Layout::ChannelsFirst;
  const PlanChoice& choice = problem.choice;
  const bool clusters =
      choice.threads <= cluster_team_threads ? allowed(choice, Team::Cluster) : chosen(choice, Team::Cluster);
  if (problem.batch_statistics && !problem.ordered && clusters && plan_cluster(problem, extent, device, plan))
    return plan;
  require(!chosen(choice, Team::Cluster), "its sets do not fit into clusters, or must wait for each other");
  require(choice.cluster <= 1, "a grid team has no clusters");
  int threads = chosen_threads(choice, 32, grid_team_threads(problem.kept), grid_team_threads(problem.kept));
  require((threads & (threads - 1)) == 0, "threads must be a power of two");
  const auto fits = [&] { return plan_grid(problem, extent, device, threads, plan); };
  while (!fits() && threads > 32) threads /= 2;
  require(choice.threads == 0 || threads == choice.threads, "shared memory has no room for a round of so many threads");
  return plan;
}

}  // namespace

PlanePlan plan_plane_norm(const PlaneProblem& problem, const DeviceLimits& device) {
  return with_choice(plane_plan, problem, device);
}

}  // namespace torchfastnorm
