// From a covariance to the matrix that whitens, and back: gradients. Batches of small matrices in ATen operations; the
// passes over the data around them are the backends'.
//
//   C = covariance + eps I                 W C W' = I, or nearly
//   Zca        W = C^(-1/2)                symmetric: the whitened data closest to the data (Huang et al. 2018)
//   Pca        W = L^(-1/2) Q'             C = Q L Q', largest eigenvalue first, the largest entry of each column of Q
//                                          positive
//   Cholesky   W = inverse of the lower triangular factor of C, with a positive diagonal
//   Newton     W = P_T / sqrt(tr C)        P_0 = I, P_k+1 = (3 P_k - P_k^3 C / tr C) / 2: nearly C^(-1/2) after T steps
//                                          (Huang et al. 2019, arXiv 1904.03441)
//
// The first three go through the eigenvalues of C in double, which are raised to eps where rounding has left them
// lower: with fewer samples than channels all stays finite. Newton's steps are in the statistics' type, in a form
// that does not lose what it has converged to. A group whose covariance is not finite gets a matrix of NaN.
//
// Gradients. Of Zca: S G + G S = -W grad_W W with S = C^(1/2), solved in C's eigenvectors, where it divides by
// s_i + s_j: coinciding eigenvalues do no harm. Pca has no derivative where two eigenvalues coincide, since its axes
// may be turned; there, and where eigenvalues are so close that rounding decides, the turning of the two axes is taken
// for constant, and the rest of the gradient is Zca's.
//
// Derivatives of any of this by autograd (`Refined`): eigenvectors come from detached values and are then improved by a
// few steps of an iteration that has W (or Q) as its fixed point. The value does not move; what autograd makes of k
// steps is exact up to the k-th derivative, and never divides by a difference of eigenvalues, Pca apart.
#pragma once
#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "common/tensors.h"

namespace torchfastnorm::bindings {

// Matrix products in the type of their factors: neither TF32 nor what autocast would cast them to.
struct FullPrecision {
  at::NoTF32Guard no_tf32;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

struct WhiteningMethod {
  enum Kind { Zca, Pca, Newton, Cholesky } kind;
  int64_t iterations;  // Newton
  double eps;
};

struct WhiteningMatrix {
  Tensor matrix;         // W: (groups, width, width), of covariance's type
  Tensor decomposition;  // (groups, rows, width). Newton: C. Zca and Pca, in double: Q, and below it the eigenvalues.
                         // Cholesky: no rows
};

// covariance: (groups, width, width), without eps.
WhiteningMatrix whitening_matrix(const Tensor& covariance, const WhiteningMethod&);

// The gradient of the covariance, symmetric, from that of the matrix.
Tensor covariance_gradient(const Tensor& grad_matrix, const WhiteningMatrix&, const WhiteningMethod&);

// Both again, as autograd can differentiate them.
class Refined {
 public:
  Refined(const Tensor& covariance, const WhiteningMethod&);
  const Tensor& matrix() const { return matrix_; }
  Tensor covariance_gradient(const Tensor& grad_matrix) const;

 private:
  void refine(const Tensor& vectors, const Tensor& values, at::ScalarType type);
  Tensor sylvester(const Tensor& right) const;

  WhiteningMethod method_;
  Tensor finite_;
  Tensor c_;                 // with eps; all but Newton: in double, its eigenvalues raised
  Tensor w_;                 // W in c_'s type
  Tensor matrix_;            // W
  Tensor vectors_, values_;  // Pca: differentiable. Zca: constants
};

}  // namespace torchfastnorm::bindings
