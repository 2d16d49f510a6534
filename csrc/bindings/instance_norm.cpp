// InstanceNorm: public schema and fast entry. The formulas: csrc/interface/instance_norm.h and plane_norm.h.
#include "common/fast_entry.h"
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

struct InstanceNorm {
  static constexpr const char* name = "instance_norm";
  using Signature = Tensor(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                           const OptTensor& weight, const OptTensor& bias, bool use_input_stats, double momentum,
                           double eps, const OptTensor& residual, std::string_view activation, const OptTensor& mask);
  static PlaneNormInputs inputs(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                                const OptTensor& weight, const OptTensor& bias, bool use_input_stats, double momentum,
                                double eps, const OptTensor& residual, std::string_view activation,
                                const OptTensor& mask) {
    return {.x = x,
            .running_mean = running_mean,
            .running_var = running_var,
            .weight = weight,
            .bias = bias,
            .residual = residual,
            .mask = mask,
            .sets = Sets::Instance,
            .batch_statistics = use_input_stats,
            .momentum = momentum,
            .eps = eps,
            .activation = activation};
  }
};
using Kernels = PlaneNormKernels<InstanceNorm>;

PyObject* entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 11);
  const auto& x = in.tensor(0);
  const auto running_mean = in.optional_tensor(1);
  const auto running_var = in.optional_tensor(2);
  const auto weight = in.optional_tensor(3);
  const auto bias = in.optional_tensor(4);
  const auto use_input_stats = in.flag(5);
  const auto momentum = in.number(6);
  const auto eps = in.number(7);
  const auto residual = in.optional_tensor(8);
  const auto activation = in.text(9);
  const auto mask = in.optional_tensor(10);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] {
    return Kernels::call(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, residual,
                         activation, mask);
  });
}

const FastEntry fast("instance_norm", entry);

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  Kernels::define(
      m,
      "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, Tensor? bias, bool "
      "use_input_stats, float momentum, float eps, Tensor? residual, str activation, Tensor? mask) -> Tensor");
}

}  // namespace
}  // namespace torchfastnorm::bindings
