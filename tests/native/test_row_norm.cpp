// The row norms of csrc/cuda through their launchers, without torch: every regime of row_plan.h, forward and backward,
// against plain loops in double precision; the same bits under every order of threads; nothing written outside.
// The Python suite asks the same kernels far more; this is for ThreadSanitizer, for a debugger and for one case:
//   test_row_norm                    all cases
//   test_row_norm few                a thinned set: fewer rows, one order
//   test_row_norm fewest             without the longest rows either
//   test_row_norm case [order seed]  the case of that number, forward | reverse | random
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/common/vector_access.cuh"
#include "interface/backend.h"
#include "interface/row_plan.h"

using namespace torchfastnorm;

namespace {

constexpr DType F = DType::Float, D = DType::Double, H = DType::Half, B = DType::BFloat16;

struct Case {
  const char* what;
  bool centered;
  DType x_type, param_type, y_type;
  bool add;  // a residual of residual_type; the sum's gradient in backward
  DType residual_type;
  int64_t rows, cols;
  int64_t gap;         // elements between rows of x
  int64_t misaligned;  // elements before the first row, in every tensor
  cudasim::Options device;
  Residency forward, backward;
};

cudasim::Options device(int max_cluster = 16, size_t shared_bytes = 227 * 1024) {
  cudasim::Options options;
  options.sm_count = 2;
  options.max_cluster = max_cluster;
  options.shared_bytes = shared_bytes;
  return options;
}

constexpr Residency W = Residency::Warp, R = Residency::Registers, S = Residency::Shared, T = Residency::Streamed;
const Case kCases[] = {
    {"short rows", true, F, F, F, false, F, 70, 7, 0, 0, device(), W, W},
    {"short rows, strided", false, B, F, B, false, B, 45, 40, 3, 1, device(), W, W},
    {"warp rows", true, B, B, B, false, B, 9, 1000, 0, 0, device(), W, W},
    {"warp rows, one SM's worth", false, F, F, F, false, F, 40, 384, 0, 3, device(), W, W},
    {"warp rows, double", true, D, D, D, true, D, 5, 250, 2, 1, device(), W, W},
    {"half in, single residual", true, H, H, H, true, F, 6, 130, 0, 0, device(), W, W},
    {"block rows", true, F, F, F, false, F, 3, 1500, 0, 0, device(), R, R},
    {"block rows, residual", false, B, B, B, true, B, 5, 2100, 5, 3, device(), R, R},
    {"block rows, mixed types", true, H, D, F, true, B, 2, 1030, 0, 5, device(), R, R},
    {"cluster of register rows", true, F, F, F, true, F, 3, 8200, 0, 0, device(), R, R},
    {"cluster of register rows, odd", false, D, F, D, false, D, 2, 4099, 1, 1, device(), R, R},
    {"rows in shared memory", true, F, F, F, false, F, 2, 16404, 0, 0, device(0), S, S},
    {"rows in shared memory, residual", false, B, F, B, true, F, 2, 16401, 1, 3, device(0), S, S},
    {"cluster of shared rows", true, F, B, F, true, F, 2, 32780, 0, 1, device(2), S, S},
    {"backward in shared memory", true, F, F, F, false, F, 3, 9001, 0, 0, device(0), R, S},
    {"backward in a cluster's shared memory", true, B, F, B, true, F, 3, 17001, 0, 1, device(2), R, S},
    {"rows longer than shared memory", true, F, F, F, false, F, 2, 17001, 0, 1, device(0, 40 * 1024), S, T},
    {"rows longer than shared memory, residual", false, B, B, B, true, B, 3, 33001, 0, 0, device(0, 40 * 1024), S, T},
};

// ---- tensors of a type known at run time

struct Tensor {
  DType type;
  int64_t rows, cols, stride, misaligned;
  std::vector<unsigned char> memory;
  static constexpr int64_t kGuard = 64;

  Tensor(DType type, int64_t rows, int64_t cols, int64_t gap, int64_t misaligned)
      : type(type),
        rows(rows),
        cols(cols),
        stride(cols + gap),
        misaligned(misaligned),
        memory(size_t((rows * stride + misaligned) * size_of(type) + 2 * kGuard + 16), 0xA5) {}
  unsigned char* data() {
    const auto begin = reinterpret_cast<uintptr_t>(memory.data()) + kGuard;
    return reinterpret_cast<unsigned char*>((begin + 15) / 16 * 16) + misaligned * size_of(type);
  }
  double get(int64_t row, int64_t col) {
    double value = 0;
    cuda::with_type(
        type, [&](auto* t) { value = double(cuda::widen(reinterpret_cast<decltype(t)>(data())[row * stride + col])); });
    return value;
  }
  void set(int64_t row, int64_t col, double value) {
    cuda::with_type(type, [&](auto* t) {
      using E = std::remove_pointer_t<decltype(t)>;
      reinterpret_cast<E*>(data())[row * stride + col] = cuda::narrow<E>(cuda::Accumulator<E>(value));
    });
  }
  void fill(std::function<double()> f) {
    for (int64_t row = 0; row < rows; row++)
      for (int64_t col = 0; col < cols; col++) set(row, col, f());
  }
  bool untouched_outside() {
    const unsigned char* const begin = data();
    const unsigned char* const end = begin + rows * stride * size_of(type);
    for (const unsigned char* p = memory.data(); p < memory.data() + memory.size(); p++)
      if ((p < begin || p >= end) && *p != 0xA5) return false;
    return true;
  }
  RowLayout layout() const { return {1, 1, stride, 0, 0}; }
};

double epsilon(DType type) { return type == D ? 0x1p-52 : type == F ? 0x1p-23 : type == H ? 0x1p-10 : 0x1p-7; }

struct Result {
  std::vector<Tensor> outputs;
  bool same_bits(Result& other) {
    for (size_t i = 0; i < outputs.size(); i++)
      if (outputs[i].memory != other.outputs[i].memory) return false;
    return true;
  }
};

// Errors of sums over `cols` numbers of magnitude 1, in units of the coarsest type that took part in the rounding.
void check_close(Tensor& ours, int64_t row, int64_t col, double expected, double scale, double rounding, const Case& c,
                 const char* tensor) {
  const double error = std::abs(ours.get(row, col) - expected);
  CHECK(error <= rounding * (scale + std::abs(expected)))
      << c.what << ": " << tensor << "[" << row << "][" << col << "] = " << ours.get(row, col) << ", not " << expected;
}

Result run(const Case& c, int64_t rows, bool check) {
  std::mt19937 bits(5);
  std::normal_distribution<double> normal(0.5, 1.0);
  const auto random = [&] { return normal(bits); };
  const DType h_type = c.add ? c.residual_type : c.x_type;
  const DType stat = accumulator_of(h_type);
  const int64_t cols = c.cols;
  Tensor x(c.x_type, rows, cols, c.gap, c.misaligned), residual(h_type, rows, cols, 0, c.misaligned),
      weight(c.param_type, 1, cols, 0, c.misaligned), bias(c.param_type, 1, cols, 0, c.misaligned),
      grad_y(c.y_type, rows, cols, c.gap, c.misaligned), grad_sum(h_type, rows, cols, 0, c.misaligned);
  for (Tensor* tensor : {&x, &residual, &weight, &bias, &grad_y, &grad_sum}) tensor->fill(random);
  Tensor y(c.y_type, rows, cols, 0, c.misaligned), sum(h_type, rows, cols, 0, c.misaligned), mean(stat, rows, 1, 0, 0),
      rstd(stat, rows, 1, 0, 0), grad_h(h_type, rows, cols, 0, c.misaligned),
      grad_x(c.x_type, rows, cols, 0, c.misaligned), grad_weight(c.param_type, 1, cols, 0, c.misaligned),
      grad_bias(c.param_type, 1, cols, 0, c.misaligned);

  const double eps = 1e-5;
  RowNormForward forward{};
  forward.x = x.data();
  forward.residual = c.add ? residual.data() : nullptr;
  forward.weight = weight.data();
  forward.bias = c.centered ? bias.data() : nullptr;
  forward.y = y.data();
  forward.sum = c.add ? sum.data() : nullptr;
  forward.mean = c.centered ? mean.data() : nullptr;
  forward.rstd = rstd.data();
  forward.rows = rows;
  forward.cols = cols;
  forward.x_layout = x.layout();
  forward.residual_layout = residual.layout();
  forward.eps = eps;
  forward.x_type = c.x_type;
  forward.residual_type = h_type;
  forward.param_type = c.param_type;
  forward.y_type = c.y_type;
  const Backend& backend = cuda::backend;
  (c.centered ? backend.layer_norm_forward : backend.rms_norm_forward)(forward, nullptr);

  Tensor& h = c.add ? sum : x;
  RowNormBackward backward{};
  backward.grad_y = grad_y.data();
  backward.grad_sum = c.add ? grad_sum.data() : nullptr;
  backward.h = h.data();
  backward.weight = weight.data();
  backward.mean = c.centered ? mean.data() : nullptr;
  backward.rstd = rstd.data();
  backward.grad_h = grad_h.data();
  backward.grad_x = h_type != c.x_type ? grad_x.data() : nullptr;
  backward.grad_weight = grad_weight.data();
  backward.grad_bias = c.centered ? grad_bias.data() : nullptr;
  backward.rows = rows;
  backward.cols = cols;
  backward.grad_y_layout = grad_y.layout();
  backward.grad_sum_layout = grad_sum.layout();
  backward.h_layout = h.layout();
  backward.y_type = c.y_type;
  backward.h_type = h_type;
  backward.x_type = c.x_type;
  backward.param_type = c.param_type;
  const int64_t bytes =
      (c.centered ? backend.layer_norm_backward_workspace : backend.rms_norm_backward_workspace)(backward);
  std::vector<double> workspace(size_t(bytes + 7) / 8, std::nan(""));
  backward.workspace = workspace.data();
  (c.centered ? backend.layer_norm_backward : backend.rms_norm_backward)(backward, nullptr);

  Result result{{y, sum, mean, rstd, grad_h, grad_x, grad_weight, grad_bias}};
  for (Tensor& tensor : result.outputs) CHECK(tensor.untouched_outside()) << c.what << ": writes outside";
  if (!check) return result;

  const double rounding = 4 * epsilon(stat) * std::sqrt(double(cols));
  std::vector<double> expected_weight(size_t(cols), 0.0), expected_bias(size_t(cols), 0.0);
  for (int64_t row = 0; row < rows; row++) {
    double total = 0, squares = 0, sum_g = 0, sum_g_x_hat = 0;
    if (c.add)
      for (int64_t j = 0; j < cols; j++)
        check_close(sum, row, j, x.get(row, j) + residual.get(row, j), 1, epsilon(h_type), c, "sum");
    for (int64_t j = 0; j < cols; j++) total += h.get(row, j);
    const double center = c.centered ? total / double(cols) : 0;
    for (int64_t j = 0; j < cols; j++) squares += (h.get(row, j) - center) * (h.get(row, j) - center);
    const double scale = 1 / std::sqrt(squares / double(cols) + eps);
    for (int64_t j = 0; j < cols; j++) {
      const double x_hat = (h.get(row, j) - center) * scale, g = grad_y.get(row, j) * weight.get(0, j);
      sum_g += g;
      sum_g_x_hat += g * x_hat;
      expected_weight[size_t(j)] += grad_y.get(row, j) * x_hat;
      expected_bias[size_t(j)] += grad_y.get(row, j);
    }
    if (c.centered) check_close(mean, row, 0, center, 1, rounding, c, "mean");
    check_close(rstd, row, 0, scale, 0, rounding, c, "rstd");
    for (int64_t j = 0; j < cols; j++) {
      const double x_hat = (h.get(row, j) - center) * scale, g = grad_y.get(row, j) * weight.get(0, j);
      const double expected_y = x_hat * weight.get(0, j) + (c.centered ? bias.get(0, j) : 0);
      const double expected_h =
          scale * (g - (c.centered ? sum_g / double(cols) : 0) - x_hat * sum_g_x_hat / double(cols)) +
          (c.add ? grad_sum.get(row, j) : 0);
      check_close(y, row, j, expected_y, 3, epsilon(c.y_type) + rounding, c, "y");
      check_close(grad_h, row, j, expected_h, 3, epsilon(h_type) + rounding, c, "grad_h");
      if (backward.grad_x) check_close(grad_x, row, j, expected_h, 3, epsilon(c.x_type) + rounding, c, "grad_x");
    }
  }
  for (int64_t j = 0; j < cols; j++) {
    const double size = 3 * double(rows), allowed = epsilon(c.param_type) + rounding;
    check_close(grad_weight, 0, j, expected_weight[size_t(j)], size, allowed, c, "grad_weight");
    if (c.centered) check_close(grad_bias, 0, j, expected_bias[size_t(j)], size, allowed, c, "grad_bias");
  }
  return result;
}

void check_regime(const Case& c, int64_t rows) {
  const RowProblem problem{rows, c.cols, c.add ? c.residual_type : c.x_type, c.centered};
  const DeviceLimits limits = cuda::device_limits();
  CHECK(plan_row_forward(problem, limits).residency == c.forward) << c.what << ": not the regime it is meant for";
  CHECK(plan_row_backward(problem, limits).residency == c.backward) << c.what << ": not the regime it is meant for";
}

cudasim::Order order_of(const std::string& name) {
  return name == "reverse"  ? cudasim::Order::reverse
         : name == "random" ? cudasim::Order::random
                            : cudasim::Order::forward;
}

}  // namespace

int main(int count, char** arguments) {
  const std::string which = count > 1 ? arguments[1] : "all";
  if (which != "all" && which != "few" && which != "fewest") {
    const Case& c = kCases[std::stoul(which)];
    cudasim::options() = c.device;
    if (count > 2) cudasim::options().order = order_of(arguments[2]);
    if (count > 3) cudasim::options().seed = std::stoull(arguments[3]);
    run(c, c.rows, true);
    std::cout << c.what << "\n" << cudasim::counters_as_json() << std::endl;
    return Check::report();
  }
  const bool few = which != "all";
  for (const Case& c : kCases) {
    if (which == "fewest" && c.cols > 17'500) continue;  // clusters of blocks of 1,024 threads: minutes under TSan
    const int64_t rows = few ? std::min<int64_t>(c.rows, 3) : c.rows;
    cudasim::options() = c.device;
    check_regime(c, rows);
    Result first = run(c, rows, true);
    if (few) continue;
    for (auto [order, seed] :
         {std::pair{cudasim::Order::reverse, 1}, {cudasim::Order::random, 1}, {cudasim::Order::random, 2}}) {
      cudasim::options().order = order;
      cudasim::options().seed = uint64_t(seed);
      Result again = run(c, rows, false);
      CHECK(first.same_bits(again)) << c.what << ": another result under another order";
    }
  }
  return Check::report();
}
