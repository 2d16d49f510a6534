// The formulas of the row norms in ATen operations. They run where a kernel cannot: under torch.func transforms and
// forward-mode AD, and for second and higher derivatives. All arithmetic is in the statistics' type, as the kernels'.
#include "row_norm.h"
#include "row_norm_checks.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>

namespace torchfastnorm::bindings {
namespace {

// The normalised dimensions of a tensor, and sums and means over them and over the others.
class Axes {
 public:
  Axes(int64_t rank, int64_t dims) {
    for (int64_t d = 0; d < rank; ++d) (d < rank - dims ? outer_ : inner_).push_back(d);
  }
  Tensor mean(const Tensor& t) const { return t.mean(inner_, /*keepdim=*/true); }
  Tensor sum_of_rows(const Tensor& t) const { return outer_.empty() ? t : t.sum(outer_); }

 private:
  std::vector<int64_t> outer_, inner_;
};

struct Normalized {
  Tensor x_hat, rstd;
};

// Two passes, as everywhere: the mean, then the centred squares.
Normalized normalize(const Axes& axes, bool centered, const Tensor& h, double eps) {
  const auto deviation = centered ? h - axes.mean(h) : h;
  auto rstd = (axes.mean(deviation * deviation) + eps).rsqrt();
  return {deviation * rstd, rstd};
}

Tensor scaled(const Tensor& t, const OptTensor& weight) { return has(weight) ? t * weight->to(t.scalar_type()) : t; }

// What multiplies a gradient on its way through x_hat = (h - mean) * rstd.
Tensor through(const Axes& axes, bool centered, const Normalized& n, const Tensor& g) {
  const auto rest = centered ? g - axes.mean(g) : g;
  return n.rstd * (rest - n.x_hat * axes.mean(g * n.x_hat));
}

}  // namespace

Pair row_norm_composite(const RowNormOp& op, const RowNormInputs<c10::SymIntArrayRef>& in) {
  check_inputs(op, in);
  Tensor sum;
  if (has(in.residual)) sum = (in.x + *in.residual).to(in.residual->scalar_type());
  const auto& h = sum.defined() ? sum : in.x;
  const auto type = statistics_type(h.scalar_type());
  auto y = scaled(normalize(Axes(h.dim(), in.shape.size()), op.centered, h.to(type), in.eps).x_hat, in.weight);
  if (has(in.bias)) y = y + in.bias->to(type);
  return {y.to(in.out_dtype.value_or(in.x.scalar_type())), sum};
}

Four row_norm_backward_composite(const RowNormOp& op, const Tensor& grad_y, const OptTensor& grad_sum, const Tensor& h_,
                                 int64_t dims, const OptTensor& weight, double eps, at::ScalarType x_dtype,
                                 at::ScalarType param_dtype, Mask mask) {
  const auto type = statistics_type(h_.scalar_type());
  const auto g = grad_y.to(type), h = h_.to(type);
  const Axes axes(h.dim(), dims);
  const auto n = normalize(axes, op.centered, h, eps);
  auto grad = through(axes, op.centered, n, scaled(g, weight));
  if (has(grad_sum)) grad = grad + grad_sum->to(type);
  return {mask[0] ? grad.to(h_.scalar_type()) : Tensor(), mask[1] ? grad.to(x_dtype) : Tensor(),
          mask[2] ? axes.sum_of_rows(g * n.x_hat).to(param_dtype) : Tensor(),
          mask[3] ? axes.sum_of_rows(g).to(param_dtype) : Tensor()};
}

// With J the map above (it is its own transpose), u the gradient arriving for grad_h and m() the mean over a row,
//   grad_h = J(g) + grad_sum,  g = grad_y * weight      =>  grad of g = J(u), of grad_sum = u, and of h
//   -rstd^2 x_hat s - rstd J(u m(g x_hat) + g m(u x_hat)),  s = m(u g) - m(u) m(g) - m(u x_hat) m(g x_hat),
// where m(u) m(g) is absent without centring. grad_weight = sum(grad_y x_hat) and grad_bias = sum(grad_y) add theirs.
Four row_norm_double_backward(bool centered, const Four& grads, const Tensor& grad_y_, const Tensor& h_, int64_t dims,
                              const OptTensor& weight, double eps) {
  const auto& [of_grad_h, of_grad_x, of_grad_weight, of_grad_bias] = grads;
  const auto type = statistics_type(h_.scalar_type());
  const auto grad_y = grad_y_.to(type), h = h_.to(type);
  const Axes axes(h.dim(), dims);
  const auto n = normalize(axes, centered, h, eps);
  Tensor for_grad_y, for_grad_sum, for_h, for_weight;
  const auto add = [](Tensor& to, const Tensor& t) { to = to.defined() ? to + t : t; };

  Tensor u;
  if (of_grad_h.defined()) add(u, of_grad_h.to(type));
  if (of_grad_x.defined()) add(u, of_grad_x.to(type));
  if (u.defined()) {
    const auto g = scaled(grad_y, weight), through_u = through(axes, centered, n, u);
    const auto mean_u = axes.mean(u * n.x_hat), mean_g = axes.mean(g * n.x_hat);
    auto s = axes.mean(u * g) - mean_u * mean_g;
    if (centered) s = s - axes.mean(u) * axes.mean(g);
    for_grad_sum = u;
    add(for_grad_y, scaled(through_u, weight));
    add(for_h, -(n.rstd * n.rstd) * n.x_hat * s - n.rstd * through(axes, centered, n, u * mean_g + g * mean_u));
    if (has(weight)) add(for_weight, axes.sum_of_rows(grad_y * through_u));
  }
  if (of_grad_weight.defined()) {
    const auto v = of_grad_weight.to(type);
    add(for_grad_y, v * n.x_hat);
    add(for_h, through(axes, centered, n, grad_y * v));
  }
  if (of_grad_bias.defined()) add(for_grad_y, of_grad_bias.to(type).expand_as(grad_y));
  return {for_grad_y, for_grad_sum, for_h, for_weight};
}

}  // namespace torchfastnorm::bindings
