// The plane norms of csrc/cuda through their launchers, without torch: every team, layout and kind of set, forward and
// backward, against plain loops in double precision; the same bits under every order of threads and for a sample alone;
// nothing written outside. The Python suite asks the same kernels far more; this is for ThreadSanitizer, for a debugger
// and for one case:
//   test_plane_kernels                    all cases
//   test_plane_kernels few                one order
//   test_plane_kernels fewest             the smaller half of them
//   test_plane_kernels case [order seed]  the case of that number, forward | reverse | random
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/common/vector_access.cuh"
#include "interface/backend.h"
#include "interface/plane_plan.h"
#include "interface/plane_signs.h"
#include "math/activation.h"
#include "tensor.h"

using namespace torchfastnorm;

namespace {

constexpr DType F = DType::Float, D = DType::Double, H = DType::Half, B = DType::BFloat16;
constexpr Layout First = Layout::ChannelsFirst, Last = Layout::ChannelsLast;
constexpr Team Cluster = Team::Cluster, Grid = Team::Grid;

struct Case {
  const char* what;
  Sets sets;
  Layout layout;
  DType type, param_type;
  int64_t samples, channels, spatial, groups;
  Activation activation;
  bool residual, mask, running, statistics;
  double momentum;
  int64_t misaligned;  // elements before the first, in every tensor
  cudasim::Options device;
  Team team;
};

cudasim::Options device(int max_cluster = 16, size_t shared_bytes = 227 * 1024, int sm_count = 2) {
  cudasim::Options options;
  options.sm_count = sm_count;
  options.max_cluster = max_cluster;
  options.shared_bytes = shared_bytes;
  return options;
}

constexpr Sets Batch = Sets::Batch, Group = Sets::Group, Instance = Sets::Instance;
constexpr Activation None = Activation::None, Relu = Activation::Relu, Silu = Activation::Silu, Gelu = Activation::Gelu;
const Case kCases[] = {
    // small ones first: "fewest" runs the first twelve
    {"batch, planes of 49", Batch, First, F, F, 3, 5, 49, 1, None, 0, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"batch, tiles", Batch, Last, F, F, 3, 20, 49, 1, Relu, 1, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"group, planes", Group, First, B, F, 2, 12, 30, 3, Silu, 0, 0, 0, 1, 0, 0, device(), Cluster},
    {"group, tiles, straddling vectors", Group, Last, B, F, 2, 30, 30, 3, Silu, 0, 0, 0, 1, 0, 1, device(), Cluster},
    {"instance, planes", Instance, First, H, H, 2, 3, 66, 1, None, 0, 0, 0, 1, 0, 3, device(), Cluster},
    {"instance, tiles", Instance, Last, F, F, 2, 6, 35, 1, Gelu, 0, 1, 0, 1, 0, 0, device(), Cluster},
    {"instance with running statistics", Instance, First, F, F, 3, 4, 20, 1, None, 0, 0, 1, 1, 0.3, 0, device(), Grid},
    {"batch, cumulative", Batch, First, F, D, 3, 4, 21, 1, Relu, 1, 0, 1, 1, -1, 0, device(), Grid},
    {"batch, evaluation", Batch, First, B, F, 3, 5, 49, 1, Relu, 1, 0, 1, 0, 0.1, 0, device(), Grid},
    {"batch, evaluation, tiles", Batch, Last, F, H, 3, 21, 10, 1, None, 0, 0, 1, 0, 0.1, 1, device(), Grid},
    {"batch, masked", Batch, First, F, F, 4, 3, 25, 1, None, 0, 1, 1, 1, 0.1, 0, device(), Cluster},
    {"batch of vectors", Batch, First, F, F, 40, 37, 1, 1, None, 0, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"group of vectors", Group, Last, F, F, 5, 24, 1, 4, Relu, 0, 0, 0, 1, 0, 0, device(), Cluster},
    {"batch, long planes in clusters", Batch, First, F, F, 3, 4, 5000, 1, None, 0, 0, 1, 1, 0.1, 1, device(), Cluster},
    {"batch, long planes, bf16", Batch, First, B, B, 5, 3, 9001, 1, Relu, 1, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"batch, long tiles in clusters", Batch, Last, B, F, 5, 70, 500, 1, Relu, 1, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"batch, tiles, masked clusters", Batch, Last, F, F, 5, 40, 300, 1, Silu, 0, 1, 1, 1, 0.1, 0, device(), Cluster},
    {"group in clusters", Group, First, F, F, 2, 8, 3000, 2, Silu, 0, 0, 0, 1, 0, 0, device(), Cluster},
    {"group in clusters, tiles", Group, Last, B, F, 2, 40, 900, 4, Silu, 0, 1, 0, 1, 0, 0, device(), Cluster},
    {"group, one group, wide", Group, Last, F, F, 2, 200, 40, 1, None, 0, 0, 0, 1, 0, 0, device(), Cluster},
    {"instance in clusters", Instance, First, D, F, 2, 2, 4099, 1, None, 0, 0, 0, 1, 0, 1, device(), Cluster},
    {"instance, tiles in clusters", Instance, Last, H, F, 2, 9, 2000, 1, None, 0, 0, 0, 1, 0, 0, device(), Cluster},
    {"batch, grid of planes", Batch, First, F, F, 3, 3, 6000, 1, Relu, 0, 0, 1, 1, 0.1, 0, device(0, 60 * 1024), Grid},
    {"batch, grid of planes, few kept", Batch, First, B, F, 4, 2, 40001, 1, None, 1, 0, 1, 1, 0.1, 0,
     device(0, 60 * 1024), Grid},
    {"batch, grid of tiles", Batch, Last, F, F, 3, 12, 9000, 1, Relu, 1, 0, 1, 1, 0.1, 0, device(0, 150 * 1024), Grid},
    {"batch, grid of wide tiles", Batch, Last, B, F, 2, 300, 700, 1, None, 0, 1, 1, 1, 0.1, 0, device(0, 100 * 1024),
     Grid},
    {"group, grid of planes", Group, First, F, F, 2, 6, 9000, 2, Silu, 0, 0, 0, 1, 0, 0, device(0, 100 * 1024), Grid},
    {"group, grid of tiles", Group, Last, B, F, 2, 30, 5000, 3, Silu, 0, 0, 0, 1, 0, 0, device(0, 60 * 1024), Grid},
    {"instance, grid of tiles, double", Instance, Last, D, D, 2, 5, 4000, 1, None, 0, 0, 0, 1, 0, 0,
     device(0, 60 * 1024), Grid},
    // backward reads the residual, as a ReLU's does not
    {"residual, planes", Batch, First, F, D, 3, 4, 21, 1, Silu, 1, 0, 1, 1, -1, 0, device(), Grid},
    {"residual, tiles", Batch, Last, F, F, 3, 20, 49, 1, Gelu, 1, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"residual, long planes, bf16", Batch, First, B, B, 5, 3, 9001, 1, Silu, 1, 0, 1, 1, 0.1, 0, device(), Cluster},
    {"residual, grid of tiles", Batch, Last, F, F, 3, 12, 9000, 1, Silu, 1, 0, 1, 1, 0.1, 0, device(0, 150 * 1024),
     Grid},
};

struct Functions {
  decltype(Backend::batch_norm_forward_workspace) forward_workspace;
  decltype(Backend::batch_norm_forward) forward;
  decltype(Backend::batch_norm_backward_workspace) backward_workspace;
  decltype(Backend::batch_norm_backward) backward;
};
Functions functions_of(Sets sets) {
  const Backend& b = cuda::backend;
  if (sets == Batch)
    return {b.batch_norm_forward_workspace, b.batch_norm_forward, b.batch_norm_backward_workspace,
            b.batch_norm_backward};
  if (sets == Group)
    return {b.group_norm_forward_workspace, b.group_norm_forward, b.group_norm_backward_workspace,
            b.group_norm_backward};
  return {b.instance_norm_forward_workspace, b.instance_norm_forward, b.instance_norm_backward_workspace,
          b.instance_norm_backward};
}

struct Run {
  std::vector<Tensor> outputs;
  std::vector<unsigned char> first_sample;  // of y and grad_x
};

void check_close(const Case& c, const char* tensor, int64_t i, double ours, double expected, double scale, DType type) {
  const double allowed = 0.51 * epsilon(type) * std::abs(expected) + 40 * epsilon(accumulator_of(c.type)) * scale;
  CHECK(std::abs(ours - expected) <= allowed)
      << c.what << ": " << tensor << "[" << i << "] = " << ours << ", not " << expected;
}

Run run(const Case& c, int64_t samples, bool check) {
  std::mt19937 bits(5);
  std::normal_distribution<double> normal(0.5, 1.0);
  const PlaneShape shape{samples, c.channels, c.spatial, c.groups, c.layout};
  const int64_t elements = samples * c.channels * c.spatial, sets = sets_of(c.sets, shape),
                width = channels_per_set(c.sets, shape);
  const DType stat = accumulator_of(c.type);
  const auto tensor = [&](DType type, int64_t count, bool large = true) {
    Tensor t(type, count, large ? c.misaligned : 0);
    for (int64_t i = 0; i < count; i++) t.set(i, normal(bits));
    return t;
  };
  Tensor weight = tensor(c.param_type, c.channels), bias = tensor(c.param_type, c.channels),
         running_mean = tensor(F, c.channels), running_var = tensor(F, c.channels);
  for (int64_t i = 0; i < c.channels; i++) running_var.set(i, std::abs(running_var.get(i)) + 0.5);
  Tensor old_mean = running_mean, old_var = running_var;
  std::vector<uint8_t> mask(size_t(c.samples * c.spatial));
  for (auto& m : mask) m = bits() % 3 != 0;
  // Sample by sample, so that the first samples are the same whatever their number.
  Tensor x(c.type, elements, c.misaligned), grad_y(c.type, elements, c.misaligned),
      residual(c.type, elements, c.misaligned);
  for (int64_t i = 0; i < elements; i++)
    x.set(i, normal(bits)), grad_y.set(i, normal(bits)), residual.set(i, normal(bits));
  Tensor y(c.type, elements, c.misaligned), mean(stat, sets), rstd(stat, sets), grad_x(c.type, elements, c.misaligned),
      grad_residual(c.type, elements, c.misaligned), grad_weight(c.param_type, c.channels),
      grad_bias(c.param_type, c.channels);
  int64_t batches = 6;

  const Functions functions = functions_of(c.sets);
  PlaneNormForward f{};
  f.x = x.data();
  f.residual = c.residual ? residual.data() : nullptr;
  f.weight = weight.data();
  f.bias = bias.data();
  f.mask = c.mask ? mask.data() : nullptr;
  f.y = y.data();
  const bool keeps = keeps_signs(c.sets, shape, c.residual, c.activation);
  std::vector<uint8_t> signs(size_t(sign_bytes(shape, c.type)), 0xA5);
  f.signs = keeps ? signs.data() : nullptr;
  f.mean = mean.data();
  f.rstd = rstd.data();
  f.running_mean = c.running ? running_mean.data() : nullptr;
  f.running_var = c.running ? running_var.data() : nullptr;
  f.batches = c.running && c.sets == Batch ? &batches : nullptr;
  f.shape = shape;
  f.eps = 1e-5;
  f.momentum = c.momentum;
  f.batch_statistics = c.statistics;
  f.activation = c.activation;
  f.type = c.type;
  f.param_type = c.param_type;
  f.running_type = F;
  std::vector<double> space(size_t(functions.forward_workspace(f) + 7) / 8, std::nan(""));
  f.workspace = space.data();
  functions.forward(f, nullptr);
  for (size_t i = signs.size() - 3; i < signs.size(); i++)
    CHECK(signs[i] == 0xA5) << c.what << ": signs beyond the end";

  PlaneNormBackward b{};
  b.grad_y = grad_y.data();
  b.x = x.data();
  b.residual = keeps ? nullptr : f.residual;
  b.signs = f.signs;
  b.weight = weight.data();
  b.bias = bias.data();
  b.mask = f.mask;
  b.mean = mean.data();
  b.rstd = rstd.data();
  b.grad_x = grad_x.data();
  b.grad_residual = c.residual ? grad_residual.data() : nullptr;
  b.grad_weight = grad_weight.data();
  b.grad_bias = grad_bias.data();
  b.shape = shape;
  b.batch_statistics = c.statistics;
  b.activation = c.activation;
  b.type = c.type;
  b.param_type = c.param_type;
  std::vector<double> more(size_t(functions.backward_workspace(b) + 7) / 8, std::nan(""));
  b.workspace = more.data();
  functions.backward(b, nullptr);

  Run result{{y, mean, rstd, grad_x, grad_residual, grad_weight, grad_bias, running_mean, running_var}, {}};
  for (Tensor& t : result.outputs) CHECK(t.untouched_outside()) << c.what << ": writes outside";
  const size_t sample_bytes = size_t(c.channels * c.spatial * size_of(c.type));
  for (Tensor* t : {&y, &grad_x})
    result.first_sample.insert(result.first_sample.end(), t->data(), t->data() + sample_bytes);
  if (!check) return result;

  const auto at = [&](int64_t n, int64_t channel, int64_t s) {
    return c.layout == First ? (n * c.channels + channel) * c.spatial + s : (n * c.spatial + s) * c.channels + channel;
  };
  const auto set_of = [&](int64_t n, int64_t channel) {
    return c.sets == Batch ? channel : n * (c.channels / width) + channel / width;
  };
  const auto counts = [&](int64_t n, int64_t s) { return !c.mask || mask[size_t(n * c.spatial + s)] != 0; };
  const auto for_each = [&](auto visit) {
    for (int64_t n = 0; n < samples; n++)
      for (int64_t channel = 0; channel < c.channels; channel++)
        for (int64_t s = 0; s < c.spatial; s++) visit(n, channel, s, at(n, channel, s), size_t(set_of(n, channel)));
  };
  std::vector<double> number(size_t(sets), 0), m(size_t(sets), 0), v(size_t(sets), 0);
  for_each([&](int64_t n, int64_t, int64_t s, int64_t i, size_t set) {
    if (counts(n, s)) number[set]++, m[set] += x.get(i);
  });
  for (size_t i = 0; i < m.size(); i++) m[i] = number[i] > 0 ? m[i] / number[i] : 0;
  for_each([&](int64_t n, int64_t, int64_t s, int64_t i, size_t set) {
    if (counts(n, s)) v[set] += (x.get(i) - m[set]) * (x.get(i) - m[set]);
  });
  std::vector<double> new_mean(size_t(c.channels), 0), new_var(size_t(c.channels), 0);
  const double per = c.sets == Batch ? 1 : double(samples);
  const double factor = c.momentum < 0 ? 1.0 / 7 : c.momentum;
  for (int64_t set = 0; set < sets; set++) {
    const size_t i = size_t(set);
    const double unbiased = v[i] / std::max(number[i] - 1, 1.0);
    v[i] = number[i] > 0 ? v[i] / number[i] : 0;
    const size_t channel = size_t(set % c.channels);
    if (c.running && c.statistics) new_mean[channel] += m[i] / per, new_var[channel] += unbiased / per;
    if (!c.statistics) m[i] = old_mean.get(set), v[i] = old_var.get(set);
    check_close(c, "mean", set, mean.get(set), m[i], 1, stat);
    check_close(c, "rstd", set, rstd.get(set), 1 / std::sqrt(v[i] + 1e-5), 1 / std::sqrt(v[i] + 1e-5), stat);
  }
  if (c.running && c.statistics) {
    for (int64_t k = 0; k < c.channels; k++) {
      check_close(c, "running_mean", k, running_mean.get(k),
                  (1 - factor) * old_mean.get(k) + factor * new_mean[size_t(k)], 2, F);
      check_close(c, "running_var", k, running_var.get(k), (1 - factor) * old_var.get(k) + factor * new_var[size_t(k)],
                  2, F);
    }
    CHECK(c.sets != Batch || batches == 7) << c.what << ": batches " << batches;
  }
  std::vector<double> of_g(size_t(sets), 0), of_g_x_hat(size_t(sets), 0), gw(size_t(c.channels), 0),
      gb(size_t(c.channels), 0);
  const auto terms = [&](int64_t n, int64_t channel, int64_t s, int64_t i, size_t set, double& x_hat, double& g,
                         double& before) {
    x_hat = (x.get(i) - m[set]) / std::sqrt(v[set] + 1e-5);
    before = x_hat * weight.get(channel) + bias.get(channel) + (c.residual ? residual.get(i) : 0);
    g = counts(n, s) ? grad_y.get(i) * activation_slope(c.activation, before) : 0;
  };
  double x_hat, g, before;
  for_each([&](int64_t n, int64_t channel, int64_t s, int64_t i, size_t set) {
    terms(n, channel, s, i, set, x_hat, g, before);
    check_close(c, "y", i, y.get(i), counts(n, s) ? activate(c.activation, before) : 0.0, 4 + std::abs(before), c.type);
    of_g[set] += g * weight.get(channel), of_g_x_hat[set] += g * weight.get(channel) * x_hat;
    gw[size_t(channel)] += g * x_hat, gb[size_t(channel)] += g;
  });
  for_each([&](int64_t n, int64_t channel, int64_t s, int64_t i, size_t set) {
    terms(n, channel, s, i, set, x_hat, g, before);
    if (c.activation == Relu && std::abs(before) < 1e-4) return;  // which side of the edge is luck
    const double inverse = number[set] > 0 && c.statistics ? 1 / number[set] : 0;
    const double expected = counts(n, s)
                                ? (g * weight.get(channel) - of_g[set] * inverse - x_hat * of_g_x_hat[set] * inverse) /
                                      std::sqrt(v[set] + 1e-5)
                                : 0;
    check_close(c, "grad_x", i, grad_x.get(i), expected, 10, c.type);
    if (c.residual) check_close(c, "grad_residual", i, grad_residual.get(i), g, 10, c.type);
  });
  for (int64_t k = 0; k < c.channels; k++) {
    const double scale = double(elements / c.channels) / 8 + 1;  // the plain loop errs too
    check_close(c, "grad_weight", k, grad_weight.get(k), gw[size_t(k)], scale, c.param_type);
    check_close(c, "grad_bias", k, grad_bias.get(k), gb[size_t(k)], scale, c.param_type);
  }
  return result;
}

bool same(Run& a, Run& b) {
  for (size_t i = 0; i < a.outputs.size(); i++)
    if (a.outputs[i].memory != b.outputs[i].memory) return false;
  return true;
}

void run_case(const Case& c, bool few) {
  cudasim::options() = c.device;
  const PlaneShape shape{c.samples, c.channels, c.spatial, c.groups, c.layout};
  const bool ordered = c.statistics && c.running && (c.sets == Instance || c.momentum < 0);
  const PlanePlan plan =
      plan_plane_norm({shape, c.sets, c.type, c.statistics, ordered, 1, c.residual}, cuda::device_limits());
  CHECK(plan.team == c.team) << c.what << ": another team";
  Run first = run(c, c.samples, true);
  if (few) return;
  for (const auto order : {cudasim::Order::reverse, cudasim::Order::random}) {
    cudasim::options().order = order;
    Run again = run(c, c.samples, false);
    CHECK(same(first, again)) << c.what << ": depends on the order of threads";
  }
  cudasim::options().order = cudasim::Order::forward;
  cudasim::options().sm_count = 3;
  if (c.sets != Batch && !c.running) {
    Run alone = run(c, 1, false);
    CHECK(first.first_sample == alone.first_sample) << c.what << ": depends on the other samples";
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  const int count = int(std::size(kCases));
  if (what == "all" || what == "few" || what == "fewest") {
    for (int i = 0; i < (what == "fewest" ? 12 : count); i++) run_case(kCases[i], what != "all");
  } else {
    const Case& c = kCases[std::stoi(what) % count];
    cudasim::options() = c.device;
    run(c, c.samples, true);
  }
  return Check::report();
}
