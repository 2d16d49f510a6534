// BatchRenorm: public schema and fast entry. The formulas: csrc/interface/plane_norm.h and math/renorm.h.
#include "common/fast_entry.h"
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

struct BatchRenorm {
  static constexpr const char* name = "batch_renorm";
  using Signature = Tensor(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                           const OptTensor& weight, const OptTensor& bias, bool training, double momentum, double eps,
                           double r_max, double d_max, double r_begin, double r_end, double d_begin, double d_end,
                           std::string_view dialect, const OptTensor& residual, std::string_view activation,
                           const OptTensor& mask, const OptTensor& batches);
  static PlaneNormInputs inputs(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                                const OptTensor& weight, const OptTensor& bias, bool training, double momentum,
                                double eps, double r_max, double d_max, double r_begin, double r_end, double d_begin,
                                double d_end, std::string_view dialect, const OptTensor& residual,
                                std::string_view activation, const OptTensor& mask, const OptTensor& batches) {
    TORCH_CHECK_VALUE(dialect != "none", "batch_renorm(): unknown dialect 'none'; batch_norm() is without correction");
    return {.x = x,
            .running_mean = running_mean,
            .running_var = running_var,
            .batches = batches,
            .weight = weight,
            .bias = bias,
            .residual = residual,
            .mask = mask,
            .sets = Sets::Batch,
            .batch_statistics = training,
            .momentum = momentum,
            .eps = eps,
            .activation = activation,
            .renorm = dialect,
            .bounds = {r_max, d_max, r_begin, r_end, d_begin, d_end}};
  }
};
using Kernels = PlaneNormKernels<BatchRenorm>;

PyObject* entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 19);
  const auto& x = in.tensor(0);
  const auto running_mean = in.optional_tensor(1);
  const auto running_var = in.optional_tensor(2);
  const auto weight = in.optional_tensor(3);
  const auto bias = in.optional_tensor(4);
  const auto training = in.flag(5);
  const auto momentum = in.number(6), eps = in.number(7);
  const auto r_max = in.number(8), d_max = in.number(9);
  const auto r_begin = in.number(10), r_end = in.number(11), d_begin = in.number(12), d_end = in.number(13);
  const auto dialect = in.text(14);
  const auto residual = in.optional_tensor(15);
  const auto activation = in.text(16);
  const auto mask = in.optional_tensor(17);
  const auto batches = in.optional_tensor(18);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] {
    return Kernels::call(x, running_mean, running_var, weight, bias, training, momentum, eps, r_max, d_max, r_begin,
                         r_end, d_begin, d_end, dialect, residual, activation, mask, batches);
  });
}

const FastEntry fast("batch_renorm", entry);

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  Kernels::define(m,
                  "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, Tensor? bias, "
                  "bool training, float momentum, float eps, float r_max, float d_max, float r_begin, float r_end, "
                  "float d_begin, float d_end, str dialect, Tensor? residual, str activation, Tensor? mask, "
                  "Tensor(c!)? num_batches_tracked) -> Tensor");
}

}  // namespace
}  // namespace torchfastnorm::bindings
