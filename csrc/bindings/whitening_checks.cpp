// The checks of whitening's arguments, also for the fake kernels.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>

#include "common/checks.h"
#include "module.h"
#include "whitening.h"

namespace py = pybind11;

namespace torchfastnorm::bindings {
namespace {

constexpr const char* name = "batch_whitening";
constexpr std::array<std::string_view, 4> methods{"zca", "pca", "iternorm", "cholesky"};  // in the order of Kind

template <class Sizes>
void check_running(const char* argument, const OptTensor& running, const Sizes& expected, const Tensor& x) {
  check_parameter(name, argument, running, x);
  TORCH_CHECK(!has(running) || running->sym_sizes() == c10::SymIntArrayRef(expected), name, "(): ", argument,
              " must have shape ", c10::SymIntArrayRef(expected), " (groups, num_channels, ...), but has shape ",
              running->sym_sizes(), "; pass it so, or another num_channels");
}

}  // namespace

WhiteningMethod whitening_method(std::string_view method, int64_t iterations, double eps) {
  const auto found = std::find(methods.begin(), methods.end(), method);
  TORCH_CHECK_VALUE(found != methods.end(), name, "(): unknown method '", method, "'; one of ",
                    c10::Join(", ", methods));
  TORCH_CHECK_VALUE(iterations >= 0, name, "(): iterations must not be negative, but got ", iterations);
  return {static_cast<WhiteningMethod::Kind>(found - methods.begin()), iterations, eps};
}

void check_whitening_shape(const Tensor& x, int64_t width) {
  TORCH_CHECK_INDEX(x.dim() >= 2, "Expected at least 2 dimensions for input tensor but received ", x.dim(), " in ",
                    name, "(); input is (N, C, *)");
  check_floating(name, "input", x.scalar_type());
  TORCH_CHECK_VALUE(width > 0, name, "(): num_channels must be positive, but got ", width);
  TORCH_CHECK_VALUE((x.sym_size(1) % width).sym_eq(0).expect_true(__FILE__, __LINE__), name,
                    "(): num_channels must divide the number of channels, but got input of shape ", x.sym_sizes(),
                    " and num_channels=", width, "; choose a divisor of ", x.sym_size(1));
}

void check_whitening(const WhiteningInputs& in) {
  check_whitening_shape(in.x, in.width);
  whitening_method(in.method, in.iterations, in.eps);
  TORCH_CHECK_VALUE(in.training ? !(in.eps <= 0) : !(in.eps < 0), name, "(): eps must be ",
                    in.training ? "positive during training" : "non-negative", ", but got ", in.eps);
  TORCH_CHECK_VALUE(has(in.running_mean) == has(in.running_wm), name,
                    "(): running_mean and running_wm must be given together or not at all");
  TORCH_CHECK(in.training || has(in.running_mean), name,
              "(): running_mean and running_wm must be defined in evaluation mode; pass them, or training=True");
  const c10::SymInt groups = in.x.sym_size(1) / in.width, width = in.width;
  check_running("running_mean", in.running_mean, std::array<c10::SymInt, 3>{groups, width, 1}, in.x);
  check_running("running_wm", in.running_wm, std::array<c10::SymInt, 3>{groups, width, width}, in.x);
  for (const auto& [argument, parameter] : {std::pair{"weight", &in.weight}, std::pair{"bias", &in.bias}}) {
    check_parameter(name, argument, *parameter, in.x);
    TORCH_CHECK(!has(*parameter) || ((*parameter)->dim() == 1 && (*parameter)->sym_size(0) == in.x.sym_size(1)), name,
                "(): ", argument, " must have one element for each of ", in.x.sym_size(1), " channels, but has shape ",
                (*parameter)->sym_sizes(), "; reshape it to (", in.x.sym_size(1), ",)");
  }
}

namespace {

void check(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_wm, const OptTensor& weight,
           const OptTensor& bias, bool training, double momentum, double eps, int64_t width, const std::string& method,
           int64_t iterations) {
  check_whitening({x, running_mean, running_wm, weight, bias, training, momentum, eps, width, method, iterations});
}

const ModulePart part([](py::module_& m) {
  m.def("check_whitening", torch::wrap_pybind_function(check),
        "The checks of whitening_forward's arguments, for fake kernels.");
});

}  // namespace
}  // namespace torchfastnorm::bindings
