// The choice of tiles, slabs and grid for whitening: interface/whitening_plan.h says what the words mean,
// docs/reductions.md has drawings, whitening_tiles.h the constants.
#include "../interface/whitening_plan.h"

#include <algorithm>

#include "whitening_tiles.h"

namespace torchfastnorm {
namespace {

using namespace cuda;

constexpr int64_t max_grid = 0x7fffffff;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Length of a row in shared memory: pitch_of in common/matrix_multiply.cuh.
int64_t pitch(int64_t length, int64_t size, bool across) {
  const int64_t period = 128 / size, wanted = size == 4 && across ? 8 : 4;
  return (length + period - 1 - wanted) / period * period + wanted;
}

WhiteningPlan tiles_and_panels(const WhiteningProblem& problem) {
  const PlaneShape& shape = problem.shape;
  const int64_t width = shape.channels / shape.groups, size = size_of(problem.type), vector = 16 / size;
  WhiteningPlan plan{};
  plan.layout = shape.spatial > 1 ? shape.layout : Layout::ChannelsLast;
  plan.tile = width <= narrow_tile ? narrow_tile : wide_tile;
  plan.positions = panel_positions(plan.tile, size);
  plan.threads = whitening_threads;
  plan.bundle = std::clamp<int64_t>(plan.tile / width, 1, shape.groups);
  plan.bundles = ceil_div(shape.groups, plan.bundle);
  plan.tiles = ceil_div(width, plan.tile);
  plan.panels = plan.layout == Layout::ChannelsFirst
                    ? ceil_div(shape.samples * ceil_div(shape.spatial, vector), plan.positions / vector)
                    : ceil_div(shape.samples * shape.spatial, plan.positions);
  return plan;
}

int64_t elements(const PlaneShape& shape) { return shape.samples * shape.channels * shape.spatial; }

// Values of a panel in shared memory, rows apart as the multiplication along or across positions wants it.
int64_t panel_values(const WhiteningPlan& plan, int64_t size, bool across) {
  const bool planes = plan.layout == Layout::ChannelsFirst;
  const int64_t rows = planes ? plan.tile : plan.positions, length = planes ? plan.positions : plan.tile;
  return rows * pitch(length, size, across);
}

}  // namespace

WhiteningPlan plan_whitening_moments(const WhiteningProblem& problem, const DeviceLimits& device) {
  WhiteningPlan plan = tiles_and_panels(problem);
  const int64_t stat = size_of(accumulator_of(problem.type));
  plan.pairs = problem.two_tensors ? plan.tiles * plan.tiles : plan.tiles * (plan.tiles + 1) / 2;
  const int64_t panels = problem.two_tensors || plan.tiles > 1 ? 2 : 1;
  plan.shared_bytes = (panels * panel_values(plan, stat, plan.layout == Layout::ChannelsLast) + 4 * plan.tile) * stat;
  const int64_t wanted = ceil_div(int64_t(device.multiprocessors) * moments_blocks, plan.bundles * plan.pairs);
  plan.slab = std::min<int64_t>(ceil_div(plan.panels, std::clamp<int64_t>(plan.panels / least_slab_panels, 1, wanted)),
                                most_slab_panels);
  plan.slabs = ceil_div(plan.panels, plan.slab);
  plan.registers = registers_within(whitening_threads, moments_blocks);
  plan.blocks = plan.slabs * plan.bundles * plan.pairs;
  plan.finish_threads = 32 * finish_warps;
  plan.finish_blocks = plan.bundles * plan.pairs * plan.tile * plan.tile / 32;
  plan.partial_bytes = plan.blocks * record_values(plan.tile) * stat;
  const int64_t width = problem.shape.channels / problem.shape.groups;
  plan.read_bytes =
      elements(problem.shape) * size_of(problem.type) * plan.tiles * (problem.two_tensors ? 2 : 1) + plan.partial_bytes;
  plan.written_bytes = plan.partial_bytes + problem.shape.channels * (width + (problem.two_tensors ? 2 : 1)) * stat;
  return plan;
}

WhiteningPlan plan_whitening_transform(const WhiteningProblem& problem, const DeviceLimits& device) {
  WhiteningPlan plan = tiles_and_panels(problem);
  const int64_t stat = size_of(accumulator_of(problem.type)), tensors = problem.two_tensors ? 2 : 1;
  const int64_t matrices = plan.tiles == 1 ? tensors : 1;
  plan.shared_bytes = (matrices * plan.tile * (pitch(plan.tile, stat, false) + 1) +
                       panel_values(plan, stat, plan.layout == Layout::ChannelsFirst) + plan.tile) *
                      stat;
  plan.static_bytes = transform_static_bytes;
  plan.registers = registers_within(whitening_threads, transform_blocks);
  const int64_t resident = int64_t(device.multiprocessors) * transform_blocks;
  plan.strides = std::clamp<int64_t>(resident / (plan.bundles * plan.tiles), 1, plan.panels);
  plan.blocks = plan.strides * plan.bundles * plan.tiles;
  const int64_t width = problem.shape.channels / problem.shape.groups;
  plan.read_bytes = elements(problem.shape) * size_of(problem.type) * tensors * plan.tiles +
                    (plan.tiles == 1 ? plan.strides : plan.panels) * problem.shape.channels * width * stat * tensors;
  plan.written_bytes = elements(problem.shape) * size_of(problem.type);
  return plan;
}

}  // namespace torchfastnorm
