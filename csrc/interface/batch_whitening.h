// What whitening needs of a backend: the two passes over feature maps. x is (samples, channels, spatial) in `layout`,
// as in plane_norm.h; its channels are cut into `groups` runs of `width` = channels / groups, and a position (a place
// of a sample) has one vector of `width` numbers for each group. Everything here happens group by group:
//
//   moments     mean_u = mean(u)       mean_v = mean(v)
//               moments[i, j] = mean((u[i] - mean_u[i]) * (v[j] - mean_v[j]))                    over all positions
//   transform   y = matrix_u (u - mean_u) + matrix_v (v - mean_v) + shift                        at every position
//
// Whitening is both, with a few matrices of (width, width) between them, which are the bindings' (ATen's) to compute:
//
//   forward    covariance = moments of x with itself          y = diag(weight) W (x - mean) + bias
//   backward   all that is wanted follows from the moments of grad_y with x:
//              grad_x = W' diag(weight) (grad_y - mean(grad_y)) + (2 / positions) grad_covariance (x - mean)
//
// A pointer's type is the DType named beside it; "stat" is accumulator_of(type). u, v and y are contiguous in `layout`,
// matrices have their columns contiguous. Products are formed and added up in stat: float stays float, also where
// tensor cores multiply (there in parts that together keep 22 bits). There is at least one position, and width
// >= 1. Results depend neither on the number of threads nor on their order. No pointer needs to be aligned beyond its
// element. Outputs never overlap inputs or each other.
#pragma once
#include "plane_norm.h"

namespace torchfastnorm {

struct WhiteningMoments {
  const void* u;    // type
  const void* v;    // type; u itself, the same pointer, for a covariance: then moments come out symmetric to the bit
  void* mean_u;     // (channels) stat
  void* mean_v;     // (channels) stat, or null where v is u
  void* moments;    // (groups, width, width) stat
  void* workspace;  // batch_whitening_moments_workspace(these arguments) bytes, aligned to 16; need not be cleared
  PlaneShape shape;
  DType type;
};

struct WhiteningTransform {
  const void* u;         // type
  const void* v;         // type, or null: no second term
  const void* matrix_u;  // (groups, width, width) stat
  const void* matrix_v;  // null exactly when v is
  const void* mean_u;    // (channels) stat, or null: zeros
  const void* mean_v;    // (channels) stat, or null: zeros
  const void* shift;     // (channels) stat, or null: zeros
  void* y;               // type
  PlaneShape shape;
  DType type;
};

namespace cpu {
int64_t batch_whitening_moments_workspace(const WhiteningMoments&);
void batch_whitening_moments(const WhiteningMoments&, Stream);
void batch_whitening_transform(const WhiteningTransform&, Stream);
}  // namespace cpu
namespace cuda {
int64_t batch_whitening_moments_workspace(const WhiteningMoments&);
void batch_whitening_moments(const WhiteningMoments&, Stream);
void batch_whitening_transform(const WhiteningTransform&, Stream);
}  // namespace cuda

}  // namespace torchfastnorm
