// Whitening: public schema and fast entry. The formulas: csrc/interface/batch_whitening.h and whitening_matrix.h.
#include "common/fast_entry.h"
#include "whitening.h"

namespace torchfastnorm::bindings {
namespace {

using Signature = Tensor(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_wm,
                         const OptTensor& weight, const OptTensor& bias, bool training, double momentum, double eps,
                         int64_t num_channels, std::string_view method, int64_t iterations);

Tensor call(const WhiteningInputs& in) {
  // Here already: under a transform of torch.func, all operations meet the state that this call met.
  const FullPrecision full_precision;
  static const auto plain = find_op<Signature>("batch_whitening");
  static const auto with_update = find_op<Signature>("batch_whitening_with_update");
  return (in.updates() ? with_update : plain)
      .call(in.x, in.running_mean, in.running_wm, in.weight, in.bias, in.training, in.momentum, in.eps, in.width,
            in.method, in.iterations);
}

Tensor kernel(const WhiteningInputs& in) { return std::get<0>(whitening_forward(in, /*statistics=*/false)); }
Tensor autograd(const WhiteningInputs& in) {
  return whitening_autograd(in, [&] { return call(in); });
}

template <auto function, bool may_write>
Tensor run(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_wm, const OptTensor& weight,
           const OptTensor& bias, bool training, double momentum, double eps, int64_t num_channels,
           std::string_view method, int64_t iterations) {
  const WhiteningInputs in{x,        running_mean, running_wm,   weight, bias,      training,
                           momentum, eps,          num_channels, method, iterations};
  TORCH_CHECK(
      may_write || !in.updates(), "torch.ops.torchfastnorm.batch_whitening writes nothing; to update running ",
      "statistics call batch_whitening_with_update, or torchfastnorm.functional.batch_whitening, which chooses");
  return function(in);
}

PyObject* entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments arguments(values, given, 11);
  const auto& x = arguments.tensor(0);
  const auto running_mean = arguments.optional_tensor(1), running_wm = arguments.optional_tensor(2);
  const auto weight = arguments.optional_tensor(3), bias = arguments.optional_tensor(4);
  const auto training = arguments.flag(5);
  const auto momentum = arguments.number(6), eps = arguments.number(7);
  const auto num_channels = arguments.integer(8);
  const auto method = arguments.text(9);
  const auto iterations = arguments.integer(10);
  if (!arguments.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] {
    return call({x, running_mean, running_wm, weight, bias, training, momentum, eps, num_channels, method, iterations});
  });
}

const FastEntry fast("batch_whitening", entry);

template <bool may_write>
void define(torch::Library& m) {
  const std::string name = may_write ? "batch_whitening_with_update" : "batch_whitening";
  const std::string schema =
      "(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_wm, Tensor? weight, Tensor? bias, bool training, "
      "float momentum, float eps, int num_channels, str method, int iterations) -> Tensor";
  m.def((name + (may_write ? schema : without_aliases(schema))).c_str(), {at::Tag::pt2_compliant_tag});
  implement(m, name.c_str(), &run<&kernel, may_write>, &run<&autograd, may_write>,
            &run<&whitening_composite, may_write>);
}

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  define<false>(m);
  define<true>(m);
}

}  // namespace
}  // namespace torchfastnorm::bindings
