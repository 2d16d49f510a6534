// RMSNorm and its residual-add form: public schemas and fast entries. The formulas: csrc/interface/rms_norm.h.
#include "common/fast_entry.h"
#include "row_norm.h"

namespace torchfastnorm::bindings {
namespace {

extern const RowNormOp op;
constexpr RowNormOp op{.name = "rms_norm",
                       .add_name = "add_rms_norm",
                       .node_name = "RMSNormBackward",
                       .centered = false,
                       .rank_is_value = true,
                       .forward = &Backend::rms_norm_forward,
                       .backward_workspace = &Backend::rms_norm_backward_workspace,
                       .backward = &Backend::rms_norm_backward,
                       .calls = &row_norm_calls<op>};

template <class Shape>
using Plain = Tensor(const Tensor&, Shape, const OptTensor&, std::optional<double>, OptType);
template <class Shape>
using Add = Pair(const Tensor&, const Tensor&, Shape, const OptTensor&, std::optional<double>, OptType);

const auto& plain_op() {
  static const auto handle = find_op<Plain<c10::SymIntArrayRef>>("rms_norm");
  return handle;
}
const auto& add_op() {
  static const auto handle = find_op<Add<c10::SymIntArrayRef>>("add_rms_norm");
  return handle;
}

// eps=None: the machine epsilon of what is normalised.
double resolved(std::optional<double> eps, const Tensor& h) { return eps.value_or(machine_epsilon(h.scalar_type())); }

Tensor plain_kernel(const Tensor& x, at::IntArrayRef shape, const OptTensor& weight, std::optional<double> eps,
                    OptType out_dtype) {
  return std::get<0>(row_norm_forward(op, {x, absent, shape, weight, absent, resolved(eps, x), out_dtype}, false));
}

Tensor plain_autograd(const Tensor& x, c10::SymIntArrayRef shape, const OptTensor& weight, std::optional<double> eps,
                      OptType out_dtype) {
  return std::get<0>(row_norm_autograd(op, {x, absent, shape, weight, absent, resolved(eps, x), out_dtype}, [&] {
    return Pair(plain_op().call(x, shape, weight, eps, out_dtype), Tensor());
  }));
}

Tensor plain_composite(const Tensor& x, c10::SymIntArrayRef shape, const OptTensor& weight, std::optional<double> eps,
                       OptType out_dtype) {
  return std::get<0>(row_norm_composite(op, {x, absent, shape, weight, absent, resolved(eps, x), out_dtype}));
}

Pair add_kernel(const Tensor& x, const Tensor& residual, at::IntArrayRef shape, const OptTensor& weight,
                std::optional<double> eps, OptType out_dtype) {
  auto [y, sum, mean, rstd] =
      row_norm_forward(op, {x, residual, shape, weight, absent, resolved(eps, residual), out_dtype}, false);
  return {std::move(y), std::move(sum)};
}

Pair add_autograd(const Tensor& x, const Tensor& residual, c10::SymIntArrayRef shape, const OptTensor& weight,
                  std::optional<double> eps, OptType out_dtype) {
  return row_norm_autograd(op, {x, residual, shape, weight, absent, resolved(eps, residual), out_dtype},
                           [&] { return add_op().call(x, residual, shape, weight, eps, out_dtype); });
}

Pair add_composite(const Tensor& x, const Tensor& residual, c10::SymIntArrayRef shape, const OptTensor& weight,
                   std::optional<double> eps, OptType out_dtype) {
  return row_norm_composite(op, {x, residual, shape, weight, absent, resolved(eps, residual), out_dtype});
}

PyObject* plain_entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 5);
  const auto& x = in.tensor(0);
  const auto shape = in.shape(1);
  const auto weight = in.optional_tensor(2);
  const auto eps = in.optional_number(3);
  const auto out_dtype = in.optional_dtype(4);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] { return plain_op().call(x, shape, weight, eps, out_dtype); });
}

PyObject* add_entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 6);
  const auto &x = in.tensor(0), &residual = in.tensor(1);
  const auto shape = in.shape(2);
  const auto weight = in.optional_tensor(3);
  const auto eps = in.optional_number(4);
  const auto out_dtype = in.optional_dtype(5);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_pair_op([&] { return add_op().call(x, residual, shape, weight, eps, out_dtype); });
}

const FastEntry plain_fast("rms_norm", plain_entry), add_fast("add_rms_norm", add_entry);

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  m.def(
      "rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps, "
      "ScalarType? out_dtype) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "add_rms_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, "
      "float? eps, ScalarType? out_dtype) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  implement(m, "rms_norm", plain_kernel, plain_autograd, plain_composite);
  implement(m, "add_rms_norm", add_kernel, add_autograd, add_composite);
  define_inner_ops<op>(m);
}

}  // namespace
}  // namespace torchfastnorm::bindings
