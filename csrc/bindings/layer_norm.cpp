// LayerNorm and its residual-add form: public schemas and fast entries. The formulas: csrc/interface/layer_norm.h.
#include "common/fast_entry.h"
#include "row_norm.h"

namespace torchfastnorm::bindings {
namespace {

extern const RowNormOp op;
constexpr RowNormOp op{.name = "layer_norm",
                       .add_name = "add_layer_norm",
                       .node_name = "LayerNormBackward",
                       .centered = true,
                       .rank_is_value = false,
                       .forward = &Backend::layer_norm_forward,
                       .backward_workspace = &Backend::layer_norm_backward_workspace,
                       .backward = &Backend::layer_norm_backward,
                       .calls = &row_norm_calls<op>};

template <class Shape>
using Plain = Tensor(const Tensor&, Shape, const OptTensor&, const OptTensor&, double, OptType);
template <class Shape>
using Add = Pair(const Tensor&, const Tensor&, Shape, const OptTensor&, const OptTensor&, double, OptType);

const auto& plain_op() {
  static const auto handle = find_op<Plain<c10::SymIntArrayRef>>("layer_norm");
  return handle;
}
const auto& add_op() {
  static const auto handle = find_op<Add<c10::SymIntArrayRef>>("add_layer_norm");
  return handle;
}

Tensor plain_kernel(const Tensor& x, at::IntArrayRef shape, const OptTensor& weight, const OptTensor& bias, double eps,
                    OptType out_dtype) {
  return std::get<0>(row_norm_forward(op, {x, absent, shape, weight, bias, eps, out_dtype}, false));
}

Tensor plain_autograd(const Tensor& x, c10::SymIntArrayRef shape, const OptTensor& weight, const OptTensor& bias,
                      double eps, OptType out_dtype) {
  return std::get<0>(row_norm_autograd(op, {x, absent, shape, weight, bias, eps, out_dtype}, [&] {
    return Pair(plain_op().call(x, shape, weight, bias, eps, out_dtype), Tensor());
  }));
}

Tensor plain_composite(const Tensor& x, c10::SymIntArrayRef shape, const OptTensor& weight, const OptTensor& bias,
                       double eps, OptType out_dtype) {
  return std::get<0>(row_norm_composite(op, {x, absent, shape, weight, bias, eps, out_dtype}));
}

Pair add_kernel(const Tensor& x, const Tensor& residual, at::IntArrayRef shape, const OptTensor& weight,
                const OptTensor& bias, double eps, OptType out_dtype) {
  auto [y, sum, mean, rstd] = row_norm_forward(op, {x, residual, shape, weight, bias, eps, out_dtype}, false);
  return {std::move(y), std::move(sum)};
}

Pair add_autograd(const Tensor& x, const Tensor& residual, c10::SymIntArrayRef shape, const OptTensor& weight,
                  const OptTensor& bias, double eps, OptType out_dtype) {
  return row_norm_autograd(op, {x, residual, shape, weight, bias, eps, out_dtype},
                           [&] { return add_op().call(x, residual, shape, weight, bias, eps, out_dtype); });
}

Pair add_composite(const Tensor& x, const Tensor& residual, c10::SymIntArrayRef shape, const OptTensor& weight,
                   const OptTensor& bias, double eps, OptType out_dtype) {
  return row_norm_composite(op, {x, residual, shape, weight, bias, eps, out_dtype});
}

PyObject* plain_entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 6);
  const auto& x = in.tensor(0);
  const auto shape = in.shape(1);
  const auto weight = in.optional_tensor(2), bias = in.optional_tensor(3);
  const auto eps = in.number(4);
  const auto out_dtype = in.optional_dtype(5);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_op([&] { return plain_op().call(x, shape, weight, bias, eps, out_dtype); });
}

PyObject* add_entry(PyObject*, PyObject* const* values, Py_ssize_t given) {
  FastArguments in(values, given, 7);
  const auto &x = in.tensor(0), &residual = in.tensor(1);
  const auto shape = in.shape(2);
  const auto weight = in.optional_tensor(3), bias = in.optional_tensor(4);
  const auto eps = in.number(5);
  const auto out_dtype = in.optional_dtype(6);
  if (!in.plain()) Py_RETURN_NOTIMPLEMENTED;
  return call_pair_op([&] { return add_op().call(x, residual, shape, weight, bias, eps, out_dtype); });
}

const FastEntry plain_fast("layer_norm", plain_entry), add_fast("add_layer_norm", add_entry);

TORCH_LIBRARY_FRAGMENT(torchfastnorm, m) {
  m.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, "
      "ScalarType? out_dtype) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "add_layer_norm(Tensor input, Tensor residual, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, "
      "float eps, ScalarType? out_dtype) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  implement(m, "layer_norm", plain_kernel, plain_autograd, plain_composite);
  implement(m, "add_layer_norm", add_kernel, add_autograd, add_composite);
  define_inner_ops<op>(m);
}

}  // namespace
}  // namespace torchfastnorm::bindings
