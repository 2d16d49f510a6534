// SwitchNorm: public schema and fast entry. The formulas: csrc/interface/plane_norm.h and math/switch_norm.h.
#include "common/fast_entry.h"
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

struct SwitchNorm {
  static constexpr const char* name = "switch_norm";
  using Signature = Tensor(const Tensor& x, const OptTensor& mean_weight, const OptTensor& var_weight,
                           const OptTensor& running_mean, const OptTensor& running_var, const OptTensor& weight,
                           const OptTensor& bias, bool training, double momentum, double eps, bool moving_average,
                           const OptTensor& residual, std::string_view activation);
  // momentum weighs the old statistics, ours the new.
  static PlaneNormInputs inputs(const Tensor& x, const OptTensor& mean_weight, const OptTensor& var_weight,
                                const OptTensor& running_mean, const OptTensor& running_var, const OptTensor& weight,
                                const OptTensor& bias, bool training, double momentum, double eps, bool moving_average,
                                const OptTensor& residual, std::string_view activation) {
    // Without them it would be another norm.
    TORCH_CHECK_TYPE(has(mean_weight), "switch_norm(): argument 'mean_weight' must be Tensor, not NoneType");
    return {.x = x,
            .running_mean = running_mean,
            .running_var = running_var,
            .weight = weight,
            .bias = bias,
            .residual = residual,
            .sets = Sets::Instance,
            .batch_statistics = training,
            .momentum = 1 - momentum,
            .eps = eps,
            .activation = activation,
            .mean_weight = mean_weight,
            .var_weight = var_weight,
            .moving_average = moving_average};
  }
};
using Kernels = PlaneNormKernels<SwitchNorm>;

PyObject* entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 13);
  const auto& x = in.tensor(0);
  const auto mean_weight = in.optional_tensor(1), var_weight = in.optional_tensor(2);
  const auto running_mean = in.optional_tensor(3), running_var = in.optional_tensor(4);
  const auto weight = in.optional_tensor(5), bias = in.optional_tensor(6);
  const auto training = in.flag(7);
  const auto momentum = in.number(8), eps = in.number(9);
  const auto moving_average = in.flag(10);
  const auto residual = in.optional_tensor(11);
  const auto activation = in.text(12);
  if (!in.plain() || !mean_weight || !var_weight) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] {
    return Kernels::call(x, mean_weight, var_weight, running_mean, running_var, weight, bias, training, momentum, eps,
                         moving_average, residual, activation);
  });
}

const FastEntry fast("switch_norm", entry);

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  Kernels::define(m,
                  "(Tensor input, Tensor? mean_weight, Tensor? var_weight, Tensor(a!)? running_mean, "
                  "Tensor(b!)? running_var, Tensor? weight, Tensor? bias, bool training, float momentum, float eps, "
                  "bool moving_average, Tensor? residual, str activation) -> Tensor");
}

}  // namespace
}  // namespace torchfastnorm::bindings
