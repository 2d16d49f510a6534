// The whitening kernels of csrc/cuda through their entry points, without torch: every type, layout and kind of tile,
// against plain loops in double precision; the same bits under every order of threads; covariances symmetric to the
// bit; transformed positions that depend on no other; nothing written outside.
//   test_whitening_kernels                    all cases
//   test_whitening_kernels few                one order, each shape once or twice
//   test_whitening_kernels fewest             the smaller half of them
//   test_whitening_kernels case [order seed]  the case of that number, forward | reverse | random
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "interface/backend.h"
#include "interface/whitening_plan.h"
#include "tensor.h"

using namespace torchfastnorm;

namespace {

constexpr DType F = DType::Float, D = DType::Double, H = DType::Half, B = DType::BFloat16;
constexpr Layout First = Layout::ChannelsFirst, Last = Layout::ChannelsLast;

struct Shape {
  int64_t samples, width, groups, spatial;
  int64_t least_slabs = 1;
};
const Shape kShapes[] = {
    // small ones first: "fewest" runs these
    {3, 1, 5, 7},
    {2, 3, 12, 49},
    {5, 8, 5, 49},
    {1, 17, 2, 64},
    {4, 33, 1, 7},
    {2, 65, 1, 49},
    {37, 24, 2, 1},
    // and the others
    {2, 16, 3, 64},
    {5, 32, 2, 49},
    {1, 1, 40, 200},
    {3, 64, 2, 49},
    {1, 100, 2, 64},
    {4, 130, 1, 7},
    {300, 40, 1, 1},
    {5, 64, 1, 500, 2},
    {5, 16, 2, 1500, 2},
    {5, 70, 1, 450, 2},
    {9, 3, 30, 333},
};
constexpr int kFewest = 7;

struct Case {
  Shape shape;
  Layout layout;
  DType type;
  bool two;            // v is another tensor
  int64_t misaligned;  // elements before the first, in every tensor
  double mean = 0.5;

  std::string what() const {
    return std::to_string(shape.samples) + " x " + std::to_string(shape.groups) + " groups of " +
           std::to_string(shape.width) + " x " + std::to_string(shape.spatial) +
           (layout == First ? ", planes" : ", channels last") + ", type " + std::to_string(int(type)) +
           (two ? ", two tensors" : "") + ", at element " + std::to_string(misaligned) + ", mean " +
           std::to_string(mean);
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const Shape& shape : kShapes)
    for (Layout layout : {First, Last})
      for (DType type : {F, D, H, B})
        for (bool two : {false, true}) cases.push_back({shape, layout, type, two, two ? 1 : 0});
  for (Layout layout : {First, Last})
    for (bool two : {false, true}) cases.push_back({{4, 20, 3, 900}, layout, F, two, 3, 1e4});
  return cases;
}

struct Run {
  std::vector<Tensor> moments, transform;
};

struct Errors {  // the greatest of each kind, in units of what is allowed
  double mean = 0, moment = 0, y = 0;
} worst;

// What `plant` puts into channel `kPlanted` of u at position 5, where it is not zero.
constexpr int64_t kPlanted = 1, kPosition = 5;

Run run(const Case& c, bool check, double plant = 0) {
  std::mt19937 bits(unsigned(c.shape.width * 100 + c.shape.spatial));
  std::normal_distribution<double> normal(0, 1);
  const int64_t samples = c.shape.samples, width = c.shape.width, groups = c.shape.groups, spatial = c.shape.spatial,
                channels = width * groups, elements = samples * channels * spatial, positions = samples * spatial;
  const PlaneShape shape{samples, channels, spatial, groups, c.layout};
  const DType stat = accumulator_of(c.type);
  const auto tensor = [&](DType type, int64_t count, double mean) {
    Tensor t(type, count, c.misaligned);
    for (int64_t i = 0; i < count; i++) t.set(i, mean + normal(bits));
    return t;
  };
  Tensor u = tensor(c.type, elements, c.mean), v = tensor(c.type, elements, -c.mean),
         matrix_u = tensor(stat, groups * width * width, 0), matrix_v = tensor(stat, groups * width * width, 0),
         shift = tensor(stat, channels, 0);
  if (plant != 0) u.set(c.layout == First ? kPlanted * spatial + kPosition : kPosition * channels + kPlanted, plant);
  Tensor mean_u(stat, channels, c.misaligned), mean_v(stat, channels, c.misaligned),
      moments(stat, groups * width * width, c.misaligned), y(c.type, elements, c.misaligned);

  WhiteningMoments m{};
  m.u = u.data();
  m.v = c.two ? v.data() : u.data();
  m.mean_u = mean_u.data();
  m.mean_v = c.two ? mean_v.data() : nullptr;
  m.moments = moments.data();
  m.shape = shape;
  m.type = c.type;
  std::vector<double> space(size_t(cuda::batch_whitening_moments_workspace(m) + 7) / 8 + 1, std::nan(""));
  auto* aligned = reinterpret_cast<unsigned char*>(space.data());
  m.workspace = aligned + (reinterpret_cast<uintptr_t>(aligned) % 16 ? 8 : 0);
  cuda::batch_whitening_moments(m, nullptr);

  if (plant != 0)  // of a run without: else all of the channel were not finite
    for (int64_t channel = 0; channel < channels; channel++) mean_u.set(channel, 0.25), mean_v.set(channel, 0.5);
  WhiteningTransform t{};
  t.u = u.data();
  t.v = c.two ? v.data() : nullptr;
  t.matrix_u = matrix_u.data();
  t.matrix_v = c.two ? matrix_v.data() : nullptr;
  t.mean_u = mean_u.data();
  t.mean_v = c.two && groups > 1 ? mean_v.data() : nullptr;
  t.shift = spatial != 7 ? shift.data() : nullptr;
  t.y = y.data();
  t.shape = shape;
  t.type = c.type;
  cuda::batch_whitening_transform(t, nullptr);

  Run result{{mean_u, mean_v, moments}, {y}};
  for (auto* outputs : {&result.moments, &result.transform})
    for (Tensor& output : *outputs) CHECK(output.untouched_outside()) << c.what() << ": writes outside";
  if (!check) return result;

  // Plain loops, from values unpacked once: [channel][position]. Sums over positions in more than double, which is a
  // type that is tested.
  const auto unpacked = [&](Tensor& x) {
    std::vector<double> values(static_cast<size_t>(elements));
    for (int64_t n = 0; n < samples; n++)
      for (int64_t channel = 0; channel < channels; channel++)
        for (int64_t s = 0; s < spatial; s++)
          values[size_t(channel * positions + n * spatial + s)] = x.get(
              c.layout == First ? (n * channels + channel) * spatial + s : (n * spatial + s) * channels + channel);
    return values;
  };
  const auto means_of = [&](const std::vector<double>& values) {
    std::vector<double> means;
    for (int64_t channel = 0; channel < channels; channel++) {
      long double sum = 0;
      for (int64_t p = 0; p < positions; p++) sum += values[size_t(channel * positions + p)];
      means.push_back(double(sum / positions));
    }
    return means;
  };
  const std::vector<double> us = unpacked(u), vs = c.two ? unpacked(v) : us, ys = unpacked(y);
  const std::vector<double> means_u = means_of(us), means_v = means_of(vs);
  const double unit = epsilon(stat);
  const double of_moments = c.type == D ? 16 : 8;  // double is added up term by term, float 8 terms at a time
  const auto close = [&](const char* what, int64_t i, double ours, double expected, double allowed, double& most) {
    most = std::max(most, std::abs(ours - expected) / allowed);
    CHECK(std::abs(ours - expected) <= allowed)
        << c.what() << ": " << what << "[" << i << "] = " << ours << ", not " << expected;
  };
  for (int64_t channel = 0; channel < channels; channel++) {
    const double size = std::abs(c.mean) + 1;
    close("mean_u", channel, mean_u.get(channel), means_u[size_t(channel)], 2 * unit * size, worst.mean);
    if (c.two) close("mean_v", channel, mean_v.get(channel), means_v[size_t(channel)], 2 * unit * size, worst.mean);
  }
  for (int64_t group = 0; group < groups; group++)
    for (int64_t i = 0; i < width; i++)
      for (int64_t j = 0; j < width; j++) {
        const int64_t row = group * width + i, col = group * width + j, at = (group * width + i) * width + j;
        long double sum = 0, size = 0;
        for (int64_t p = 0; p < positions; p++) {
          const double product = (us[size_t(row * positions + p)] - means_u[size_t(row)]) *
                                 (vs[size_t(col * positions + p)] - means_v[size_t(col)]);
          sum += product, size += std::abs(product);
        }
        close("moments", at, moments.get(at), double(sum / positions),
              of_moments * unit * (double(size / positions) + 0.1), worst.moment);
        if (!c.two)
          CHECK(moments.get(at) == moments.get((group * width + j) * width + i)) << c.what() << ": not symmetric";
      }
  for (int64_t channel = 0; channel < channels; channel++) {
    const int64_t group = channel / width, i = channel % width;
    const double bias = t.shift != nullptr ? shift.get(channel) : 0;
    std::vector<double> row_u, row_v;
    for (int64_t j = 0; j < width; j++) {
      row_u.push_back(matrix_u.get((group * width + i) * width + j));
      row_v.push_back(c.two ? matrix_v.get((group * width + i) * width + j) : 0);
    }
    for (int64_t p = 0; p < positions; p++) {
      double sum = bias, size = std::abs(bias);
      for (int64_t j = 0; j < width; j++) {
        const int64_t k = group * width + j;
        const double of_u = row_u[size_t(j)] * (us[size_t(k * positions + p)] - mean_u.get(k));
        const double of_v = row_v[size_t(j)] * (vs[size_t(k * positions + p)] - (t.mean_v ? mean_v.get(k) : 0));
        sum += of_u + of_v, size += std::abs(of_u) + std::abs(of_v);
      }
      const double allowed = 0.51 * epsilon(c.type) * std::abs(sum) + 4 * unit * size + 1e-7 * (c.type == H);
      close("y", channel * positions + p, ys[size_t(channel * positions + p)], sum, allowed, worst.y);
    }
  }
  return result;
}

bool same(std::vector<Tensor>& a, std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); i++)
    if (a[i].memory != b[i].memory) return false;
  return true;
}

void run_case(const Case& c, bool few) {
  cudasim::options() = {};
  cudasim::options().sm_count = 2;
  const PlaneShape shape{c.shape.samples, c.shape.width * c.shape.groups, c.shape.spatial, c.shape.groups, c.layout};
  const WhiteningPlan plan = plan_whitening_moments({shape, c.type, c.two}, cuda::device_limits());
  CHECK(plan.slabs >= c.shape.least_slabs) << c.what() << ": " << plan.slabs << " slabs";
  Run first = run(c, true);
  if (few) return;
  for (const auto order : {cudasim::Order::reverse, cudasim::Order::random}) {
    cudasim::options().order = order;
    Run again = run(c, false);
    CHECK(same(first.moments, again.moments) && same(first.transform, again.transform))
        << c.what() << ": depends on the order of threads";
  }
}

// A value that is not finite shows where it belongs, and nowhere else: in the moments of its channel, and in the
// outputs of its position and group, also where groups share a tile.
void run_not_finite(Layout layout, DType type, int64_t width, int64_t groups, bool two) {
  cudasim::options() = {};
  const Case c{{2, width, groups, 50}, layout, type, two, 0};
  const int64_t channels = width * groups, group_of_plant = kPlanted / width;
  Run clean = run(c, false, 0.125);
  for (double plant : {double(NAN), double(INFINITY)}) {
    Run odd = run(c, false, plant);
    for (int64_t group = 0; group < groups; group++)
      for (int64_t i = 0; i < width; i++)
        for (int64_t j = 0; j < width; j++) {
          const int64_t at = (group * width + i) * width + j;
          const bool touched = group == group_of_plant && (i == kPlanted % width || (!two && j == kPlanted % width));
          const double ours = odd.moments[2].get(at);
          CHECK(touched ? std::isnan(ours) : ours == clean.moments[2].get(at))
              << c.what() << ": moments[" << at << "] = " << ours << " with " << plant;
        }
    for (int64_t channel = 0; channel < channels; channel++)
      for (int64_t p = 0; p < 100; p++) {
        const int64_t n = p / 50, s = p % 50;
        const int64_t at = layout == First ? (n * channels + channel) * 50 + s : p * channels + channel;
        const bool touched = p == kPosition && channel / width == group_of_plant;
        const double ours = odd.transform[0].get(at), expected = clean.transform[0].get(at);
        // There the sum goes another way.
        const double allowed =
            p == kPosition ? 80 * epsilon(accumulator_of(type)) + epsilon(type) * std::abs(expected) : 0;
        CHECK(touched ? !std::isfinite(ours) : std::abs(ours - expected) <= allowed)
            << c.what() << ": y[" << channel << ", " << p << "] = " << ours << " with " << plant << ", not "
            << expected;
      }
  }
}

// Where every row is aligned, feature maps move in pieces of 16 bytes, as often as docs/reductions.md says.
void run_bytes(Layout layout, DType type, int64_t width, int64_t groups, bool two) {
  cudasim::options() = {};
  cudasim::reset_counters();
  const Case c{{3, width, groups, 64}, layout, type, two, 0};
  const PlaneShape shape{3, width * groups, 64, groups, layout};
  const DeviceLimits device = cuda::device_limits();
  const WhiteningPlan moments = plan_whitening_moments({shape, type, two}, device),
                      transform = plan_whitening_transform({shape, type, two}, device);
  run(c, false);
  const auto& kernels = cudasim::counters_now.kernels;
  const auto &of_moments = kernels.at("whitening_moments"), &of_transform = kernels.at("whitening_transform");
  const uint64_t bytes = uint64_t(3 * width * groups * 64 * size_of(type)), reads = bytes * (two ? 2 : 1);
  CHECK(of_moments.loads.by_width[4] * 16 == reads * uint64_t(moments.tiles)) << c.what() << ": reads of moments";
  CHECK(of_moments.loads.bytes == uint64_t(moments.read_bytes - moments.partial_bytes)) << c.what() << ": its plan";
  CHECK(of_moments.stores.bytes <= uint64_t(moments.partial_bytes)) << c.what() << ": what slabs leave";
  CHECK(of_transform.loads.by_width[4] * 16 == reads * uint64_t(transform.tiles)) << c.what() << ": reads of transform";
  CHECK(of_transform.stores.by_width[4] * 16 == bytes) << c.what() << ": writes of transform";
  CHECK(of_transform.stores.bytes == uint64_t(transform.written_bytes)) << c.what() << ": its plan";
  const uint64_t vectors = uint64_t(transform.blocks * transform.tile * size_of(accumulator_of(type)));
  CHECK(of_transform.loads.bytes >= uint64_t(transform.read_bytes)) << c.what() << ": matrices";
  CHECK(of_transform.loads.bytes - uint64_t(transform.read_bytes) <=
        3 * vectors * (transform.tiles > 1 ? uint64_t(transform.panels * transform.tiles) : 1))
      << c.what() << ": means and shift";
}

// Slabs cover all panels, none is empty or longer than rounding errors allow, whatever the size.
void check_plans() {
  for (int64_t samples : {1, 7, 300, 70000})
    for (int64_t spatial : {1, 49, 3136, 262144})
      for (int64_t width : {1, 16, 64, 512})
        for (int multiprocessors : {1, 132}) {
          const DeviceLimits device{multiprocessors, 227 * 1024, 16};
          const WhiteningPlan plan = plan_whitening_moments({{samples, width, spatial, 1, First}, B, false}, device);
          CHECK(plan.slab >= 1 && plan.slab <= 256 && plan.slab * plan.slabs >= plan.panels &&
                plan.slab * (plan.slabs - 1) < plan.panels)
              << samples << " x " << width << " x " << spatial << ": " << plan.slabs << " slabs of " << plan.slab;
          CHECK(plan.blocks == plan.slabs * plan.pairs * plan.bundles) << "blocks " << plan.blocks;
        }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  const std::vector<Case> cases = all_cases();
  if (what == "all" || what == "few" || what == "fewest") {
    // Of each shape 16 cases; the thinned sets take one or two of them, others for every shape.
    for (size_t i = 0; i < cases.size(); i++) {
      const size_t shape = i / 16;
      if (what == "fewest" && (shape >= kFewest || i % 16 != shape * 5 % 16)) continue;
      if (what == "few" && shape < std::size(kShapes) && i % 16 != shape * 5 % 16 && i % 16 != (shape * 5 + 9) % 16)
        continue;
      run_case(cases[i], what != "all");
    }
    for (Layout layout : {First, Last})
      for (DType type : {F, D, B}) {
        if (what == "fewest" && type != B) continue;
        run_not_finite(layout, type, 3, 14, true);
        run_not_finite(layout, type, 8, 4, layout == First);
        run_not_finite(layout, type, 20, 2, false);
        run_not_finite(layout, type, 40, 1, true);
      }
    check_plans();
    for (Layout layout : {First, Last})
      for (bool two : {false, true}) {
        if (what == "fewest" && two) continue;
        run_bytes(layout, B, 16, 6, two);
        run_bytes(layout, F, 64, 2, two);
        run_bytes(layout, D, 160, 1, two);
      }
    std::cout << "greatest errors, as shares of what is allowed: mean " << worst.mean << ", moment " << worst.moment
              << ", y " << worst.y << std::endl;
  } else {
    const Case& c = cases[size_t(std::stoi(what)) % cases.size()];
    if (argc > 3) {
      const std::string order = argv[2];
      cudasim::options().order = order == "reverse"  ? cudasim::Order::reverse
                                 : order == "random" ? cudasim::Order::random
                                                     : cudasim::Order::forward;
      cudasim::options().seed = uint64_t(std::stoi(argv[3]));
    }
    std::cout << c.what() << std::endl;
    run(c, true);
    std::cout << cudasim::counters_as_json() << std::endl;
  }
  return Check::report();
}
