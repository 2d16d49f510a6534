// Whitening matrices and their gradients: whitening_matrix.h has the formulas.
#include "whitening_matrix.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/diag_embed.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>

#include <limits>
#include <utility>
#include <vector>

namespace torchfastnorm::bindings {
namespace {

// Derivatives up to this order are exact: Picard's iteration gains one with each step.
constexpr int refinements = 4;

Tensor transposed(const Tensor& t) { return t.transpose(-2, -1); }
Tensor symmetric(const Tensor& t) { return (t + transposed(t)) * 0.5; }
Tensor identity_like(const Tensor& t) { return at::eye_symint(t.sym_size(-1), t.options()); }
// Lower triangle with half of the diagonal: T of T + T' = t, for a symmetric t.
Tensor lower_half(const Tensor& t) { return t.tril() - at::diag_embed(t.diagonal(0, -2, -1)) * 0.5; }
Tensor between(const Tensor& outer, const Tensor& inner) { return outer.matmul(inner).matmul(transposed(outer)); }
Tensor columns(const Tensor& t) { return t.unsqueeze(-1); }
Tensor row(const Tensor& t) { return t.unsqueeze(-2); }

// ---- Newton

// Coupled: with Y_k = P_k S and R = (3 I - P_k Y_k) / 2 it is P_k+1 = R P_k, Y_k+1 = Y_k R. As the definition has it,
// roundings grow with every step by about half of C's condition, in the end to NaN; here they do not.
struct NewtonSteps {
  Tensor trace, s;              // s = c / trace
  std::vector<Tensor> p, y, r;  // before each step, and its R; of p the result, too

  NewtonSteps(const Tensor& c, int64_t iterations) {
    trace = columns(columns(c.diagonal(0, -2, -1).sum(-1))), s = c / trace;
    const auto identity = identity_like(s);
    p = {identity.expand_as(s)}, y = {s};
    for (int64_t k = 0; k < iterations; ++k) {  // P_0 = I: the first step needs one product
      r.push_back(k == 0 ? 1.5 * identity - 0.5 * s : at::baddbmm(identity, p.back(), y.back(), 1.5, -0.5));
      p.push_back(k == 0 ? r.back() : r.back().matmul(p.back()));
      if (k + 1 < iterations) y.push_back(y.back().matmul(r.back()));
    }
  }
};

Tensor newton(const Tensor& c, int64_t iterations) {
  const NewtonSteps steps(c, iterations);
  return steps.p.back() * steps.trace.rsqrt();
}

// The steps in reverse; P, Y and R are symmetric.
Tensor newton_gradient(const Tensor& grad_w, const Tensor& c, int64_t iterations) {
  const auto [trace, s, p, y, r] = NewtonSteps(c, iterations);
  const auto total = [](const Tensor& t) { return t.sum(at::IntArrayRef{-2, -1}, /*keepdim=*/true); };
  Tensor grad_p = grad_w * trace.rsqrt(), grad_y, grad_s = grad_p * 0;
  for (auto k = size_t(iterations); k-- > 0;) {
    auto grad_r = k == 0 ? grad_p : grad_p.matmul(p[k]);
    if (grad_y.defined()) grad_r = at::baddbmm(grad_r, y[k], grad_y), grad_y = grad_y.matmul(r[k]);
    if (k == 0) {
      grad_s = grad_y.defined() ? grad_y - 0.5 * grad_r : -0.5 * grad_r;
      break;
    }
    grad_p = at::baddbmm(r[k].matmul(grad_p), grad_r, y[k], 1, -0.5);
    const auto of_product = -0.5 * p[k].matmul(grad_r);
    grad_y = grad_y.defined() ? grad_y + of_product : of_product;
  }
  const auto of_trace = total(grad_s * s) / trace + 0.5 * total(grad_w * p.back()) * trace.rsqrt() / trace;
  return symmetric(grad_s) / trace - of_trace * identity_like(s);
}

// ---- through eigenvalues

struct Eigen {
  Tensor vectors, values;
};

// Largest first, signs fixed, raised to eps; constants to autograd.
Eigen eigen_of(const Tensor& c, double eps) {
  const auto [ascending, unordered] = at::linalg_eigh(c.detach());
  auto vectors = unordered.flip(-1);
  const auto largest = vectors.abs().argmax(-2, /*keepdim=*/true);
  vectors = vectors * at::where(vectors.gather(-2, largest) < 0, -1., 1.).to(vectors.scalar_type());
  return {vectors, ascending.flip(-1).clamp_min(eps)};
}

Tensor by_eigenvalues(const Eigen& e, const Tensor& function) {
  return (e.vectors * row(function)).matmul(transposed(e.vectors));
}

Tensor cholesky_inverse(const Eigen& e) {
  // C = (L^(1/2) Q')' (L^(1/2) Q') = R' R: no step that can fail.
  const auto r = std::get<1>(at::linalg_qr(columns(e.values.sqrt()) * transposed(e.vectors)));
  const auto sign = at::where(r.diagonal(0, -2, -1) < 0, -1., 1.).to(r.scalar_type());
  const auto lower = transposed(columns(sign) * r);
  return at::linalg_solve_triangular(lower, identity_like(lower).expand_as(lower), /*upper=*/false);
}

Tensor matrix_of(WhiteningMethod::Kind kind, const Eigen& e) {
  if (kind == WhiteningMethod::Zca) return by_eigenvalues(e, e.values.rsqrt());
  if (kind == WhiteningMethod::Pca) return columns(e.values.rsqrt()) * transposed(e.vectors);
  return cholesky_inverse(e);
}

// -1 / (s_i s_j (s_i + s_j)), the divided differences of l^(-1/2), s = l^(1/2).
Tensor differences(const Tensor& values) {
  const auto s = values.sqrt();
  return -(columns(s) * row(s) * (columns(s) + row(s))).reciprocal();
}

Tensor zca_gradient(const Tensor& grad_w, const Eigen& e) {
  const auto inner = between(transposed(e.vectors), symmetric(grad_w));
  return between(e.vectors, inner * differences(e.values));
}

// What rounding of the covariance, kept in `type`, may do to an eigenvalue.
Tensor indistinguishable(const Tensor& values, at::ScalarType type) {
  const auto least = machine_epsilon(type) * double(values.size(-1));
  return (columns(values) - row(values)).abs() <= least * columns(columns(std::get<0>(values.max(-1))));
}

Tensor pca_gradient(const Tensor& grad_w, const Eigen& e, at::ScalarType type) {
  // In the eigenvectors, m = grad_w Q: its symmetric part meets half of Zca's differences (all of it on the diagonal),
  // its antisymmetric part turns the axes.
  const auto m = grad_w.matmul(e.vectors), even = symmetric(m), odd = (m - transposed(m)) * 0.5;
  const auto inverse = e.values.rsqrt(), gap = columns(e.values) - row(e.values);
  const auto close = indistinguishable(e.values.detach(), type);
  const auto turned = odd * (columns(inverse) + row(inverse)) / (2 * at::where(close, 1, gap));
  const auto all = even * differences(e.values);
  const auto inner = 0.5 * (all + at::diag_embed(all.diagonal(0, -2, -1))) + at::where(close, 0, turned);
  return between(e.vectors, symmetric(inner));
}

Tensor cholesky_gradient(const Tensor& grad_w, const Tensor& w) {
  return -between(transposed(w), symmetric(lower_half(grad_w.matmul(transposed(w)))));
}

// Is C finite; C with eps on its diagonal, where it is not finite I, so that no decomposition fails.
std::pair<Tensor, Tensor> prepared(const Tensor& covariance, double eps) {
  const auto identity = identity_like(covariance);
  const auto c = covariance + eps * identity, finite = c.isfinite().all(-1, true).all(-2, true);
  return {finite, at::where(finite, c, identity)};
}
Tensor or_nan(const Tensor& finite, const Tensor& t) {
  return at::where(finite, t, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

WhiteningMatrix whitening_matrix(const Tensor& covariance, const WhiteningMethod& method) {
  const FullPrecision full_precision;
  const auto type = covariance.scalar_type();
  if (method.kind == WhiteningMethod::Newton) {
    const auto c = covariance + method.eps * identity_like(covariance);
    return {newton(c, method.iterations), c};
  }
  const auto [finite, c] = prepared(covariance, method.eps);
  const auto e = eigen_of(c.to(at::kDouble), method.eps);
  const auto matrix = or_nan(finite, matrix_of(method.kind, e).to(type));
  if (method.kind == WhiteningMethod::Cholesky)
    return {matrix, at::empty({covariance.size(0), 0, covariance.size(1)}, covariance.options())};
  return {matrix, at::cat({or_nan(finite, e.vectors), row(e.values)}, -2)};
}

Tensor covariance_gradient(const Tensor& grad_matrix, const WhiteningMatrix& w, const WhiteningMethod& method) {
  const FullPrecision full_precision;
  const auto type = grad_matrix.scalar_type();
  if (method.kind == WhiteningMethod::Newton) return newton_gradient(grad_matrix, w.decomposition, method.iterations);
  const auto grad = grad_matrix.to(at::kDouble);
  if (method.kind == WhiteningMethod::Cholesky) return cholesky_gradient(grad, w.matrix.to(at::kDouble)).to(type);
  const auto width = w.decomposition.size(-1);
  const Eigen e{w.decomposition.narrow(-2, 0, width), w.decomposition.select(-2, width)};
  return (method.kind == WhiteningMethod::Zca ? zca_gradient(grad, e) : pca_gradient(grad, e, type)).to(type);
}

Refined::Refined(const Tensor& covariance, const WhiteningMethod& method) : method_(method) {
  if (method.kind == WhiteningMethod::Newton) {
    c_ = covariance + method.eps * identity_like(covariance);
    matrix_ = newton(c_, method.iterations);
    return;
  }
  const auto [finite, c] = prepared(covariance, method.eps);
  const auto wide = c.to(at::kDouble);
  const auto e = eigen_of(wide, method.eps);
  finite_ = finite;
  // The value is what the decomposition says, eigenvalues raised; the derivative is the covariance's.
  c_ = wide + (by_eigenvalues(e, e.values) - wide).detach();
  refine(e.vectors, e.values, covariance.scalar_type());
  matrix_ = or_nan(finite, w_.to(covariance.scalar_type()));
}

void Refined::refine(const Tensor& vectors, const Tensor& values, at::ScalarType type) {
  const auto identity = identity_like(c_);
  vectors_ = vectors, values_ = values;
  if (method_.kind == WhiteningMethod::Pca) {
    // Ogita, Aishima 2018 (Japan J. Indust. Appl. Math. 35, 1007): Q <- Q + Q E.
    const auto close = indistinguishable(values, type);
    for (int k = 0; k < refinements; ++k) {
      const auto r = identity - transposed(vectors_).matmul(vectors_);
      const auto s = between(transposed(vectors_), c_);
      values_ = s.diagonal(0, -2, -1) / (1 - r.diagonal(0, -2, -1));
      const auto gap = row(values_) - columns(values_);
      const auto turn = (s + row(values_) * r) / at::where(close, 1, gap);
      vectors_ = vectors_ + vectors_.matmul(at::where(close, 0.5 * r, turn));
    }
  }
  w_ = matrix_of(method_.kind, {vectors_, values_});
  for (int k = 0; k < refinements && method_.kind != WhiteningMethod::Pca; ++k) {
    const auto error = identity - between(w_, c_);
    w_ = method_.kind == WhiteningMethod::Zca ? w_ + sylvester(error) : w_ + lower_half(error).matmul(w_);
  }
}

// X of S X + X S = right, S = C^(1/2), as a linear function of `right`.
Tensor Refined::sylvester(const Tensor& right) const {
  const auto s = values_.sqrt();
  return between(vectors_, between(transposed(vectors_), right) / (columns(s) + row(s)));
}

Tensor Refined::covariance_gradient(const Tensor& grad_matrix) const {
  if (method_.kind == WhiteningMethod::Newton) return newton_gradient(grad_matrix, c_, method_.iterations);
  const auto type = grad_matrix.scalar_type();
  const auto grad = grad_matrix.to(at::kDouble);
  Tensor result;
  if (method_.kind == WhiteningMethod::Cholesky) {
    result = cholesky_gradient(grad, w_);
  } else if (method_.kind == WhiteningMethod::Pca) {
    result = pca_gradient(grad, {vectors_, values_}, type);
  } else {
    const auto right = -between(w_, symmetric(grad)), s = symmetric(c_.matmul(w_));
    result = sylvester(right);
    for (int k = 1; k < refinements; ++k) result = result + sylvester(right - 2 * symmetric(s.matmul(result)));
  }
  return or_nan(finite_, result.to(type));
}

}  // namespace torchfastnorm::bindings
