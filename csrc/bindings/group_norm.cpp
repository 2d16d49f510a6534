// GroupNorm: public schema and fast entry. The formulas: csrc/interface/group_norm.h and plane_norm.h.
#include "common/fast_entry.h"
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

struct GroupNorm {
  static constexpr const char* name = "group_norm";
  using Signature = Tensor(const Tensor& x, int64_t groups, const OptTensor& weight, const OptTensor& bias, double eps,
                           const OptTensor& residual, std::string_view activation, const OptTensor& mask);
  static PlaneNormInputs inputs(const Tensor& x, int64_t groups, const OptTensor& weight, const OptTensor& bias,
                                double eps, const OptTensor& residual, std::string_view activation,
                                const OptTensor& mask) {
    return {.x = x,
            .weight = weight,
            .bias = bias,
            .residual = residual,
            .mask = mask,
            .sets = Sets::Group,
            .groups = groups,
            .eps = eps,
            .activation = activation};
  }
};
using Kernels = PlaneNormKernels<GroupNorm>;

PyObject* entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 8);
  const auto& x = in.tensor(0);
  const auto groups = in.integer(1);
  const auto weight = in.optional_tensor(2);
  const auto bias = in.optional_tensor(3);
  const auto eps = in.number(4);
  const auto residual = in.optional_tensor(5);
  const auto activation = in.text(6);
  const auto mask = in.optional_tensor(7);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] { return Kernels::call(x, groups, weight, bias, eps, residual, activation, mask); });
}

const FastEntry fast("group_norm", entry);

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  Kernels::define(m,
                  "(Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps, Tensor? residual, str "
                  "activation, Tensor? mask) -> Tensor");
}

}  // namespace
}  // namespace torchfastnorm::bindings
