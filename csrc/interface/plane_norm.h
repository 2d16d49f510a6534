// What BatchNorm, GroupNorm and InstanceNorm hand to a backend. x is (samples, channels, spatial); a plane is one
// channel of one sample: `spatial` elements. A set of planes is normalised together; which planes make a set is all
// that the three norms differ in:
//
//   Sets::Batch      the planes of one channel over all samples          sets = channels,          set = c
//   Sets::Group      channels / groups consecutive planes of a sample    sets = samples * groups,  set = n * groups + g
//   Sets::Instance   one plane                                           sets = samples * channels
//
//   forward    mean, var (biased) of the set's elements that `mask` counts      rstd = 1 / sqrt(var + eps)
//              y  = activation((x - mean) * rstd * weight[c] + bias[c] + residual)         0 where mask does not count
//              running = (1 - momentum) * running + momentum * (mean, unbiased var)        averaged over samples
//   backward   g  = grad_y * activation'(...), 0 where mask does not count       x_hat = (x - mean) * rstd
//              grad_x = rstd * (g * weight - mean(g * weight) - x_hat * mean(g * weight * x_hat)),  means over the set
//              grad_residual = g         grad_weight[c] = sum(g * x_hat)         grad_bias[c] = sum(g)
//
// Without batch_statistics mean and var are the running ones (Sets::Batch only), constants in backward: both of its
// means are absent. A set without counted elements has mean 0 and variance 0.
//
// Switchable normalization (Sets::Instance with `mix.terms`): a set's mean and variance are mixed from those of its
// plane, of its sample (layer) and of its channel (batch), by softmaxes of logits; math/switch_norm.h has the formulas.
// mean and rstd are then 2 * sets + samples + channels long: mean and rstd of each set after mixing, and behind them
// means and variances of planes, samples and channels. They are always wanted. Its batch_statistics is true, also where
// the batch's term is the running statistics.
//
// A pointer's type is the DType named beside it; "stat" is accumulator_of(type). x, residual, y and their gradients are
// contiguous in `layout`. Sizes may be zero; every output that is wanted is written all the same. No pointer needs to
// be aligned beyond its element. Outputs never overlap inputs or each other.
#pragma once
#include "types.h"

namespace torchfastnorm {

enum class Sets : int8_t { Batch, Group, Instance };

enum class Layout : int8_t {
  ChannelsFirst,
  ChannelsLast
};  // (samples, channels, spatial), (samples, spatial, channels)

struct PlaneShape {
  int64_t samples, channels, spatial;
  int64_t groups;  // Sets::Group: divides channels
  Layout layout;
};

struct PlaneNormForward {
  const void* x;         // type
  const void* residual;  // type, or null
  const void* weight;    // (channels) param_type, or null (ones)
  const void* bias;      // (channels) param_type, or null (zeros)
  const uint8_t* mask;   // (samples, spatial), 1 counts, 0 does not; or null: all count
  void* y;               // type
  uint8_t* signs;        // sign_bytes(shape, type), or null: not wanted (plane_signs.h)
  void* mean;            // (sets) stat, or null: not wanted
  void* rstd;            // (sets) stat, null exactly when mean is. With renorm and batch_statistics (6, sets): what
                         // math/renorm.h makes, in its order
  void* running_mean;    // (channels) running_type, or null; updated if batch_statistics, else read
  void* running_var;     // null exactly when running_mean is; biased by the number of elements minus one
  int64_t* batches;      // null, or the number of batches seen so far: raised by one if batch_statistics; with renorm
                         // read only (null: the bounds' ends)
  void* workspace;       // <op>_forward_workspace(these arguments) bytes, aligned to 16; need not be cleared
  PlaneShape shape;
  double eps;
  double momentum;      // negative: 1 / batches, counted with this one (cumulative average)
  RenormBounds bounds;  // with renorm, which needs running_mean
  Switch mix;
  bool batch_statistics;
  Renorm renorm;
  Activation activation;
  DType type, param_type, running_type;
  PlanChoice choice;
};

struct PlaneNormBackward {
  const void* grad_y;      // type
  const void* x;           // type
  const void* residual;    // type, or null; needed for the activation's derivative alone, and not with signs
  const uint8_t* signs;    // what forward wrote; null where there was no residual or the activation is another
  const void* weight;      // as in forward
  const void* bias;        // as in forward; needed for the activation's derivative alone
  const uint8_t* mask;     // as in forward
  const void* mean;        // (sets) stat, what forward wrote
  const void* rstd;        // (sets) stat, what forward wrote
  void* grad_x;            // type, or null: not wanted
  void* grad_residual;     // type, or null: not wanted
  void* grad_weight;       // (channels) param_type, or null: not wanted
  void* grad_bias;         // (channels) param_type, or null: not wanted
  void* grad_mean_logits;  // (terms) mix.type, or null: not wanted
  void* grad_var_logits;   // (terms) mix.type, or null: not wanted
  void* workspace;         // <op>_backward_workspace(these arguments) bytes, aligned to 16; need not be cleared
  PlaneShape shape;
  bool batch_statistics;
  Renorm renorm;  // None without batch_statistics
  Switch mix;
  Activation activation;
  DType type, param_type;
  PlanChoice choice;
};

constexpr int64_t sets_of(Sets sets, const PlaneShape& shape) {
  if (sets == Sets::Batch) return shape.channels;
  return shape.samples * (sets == Sets::Group ? shape.groups : shape.channels);
}
constexpr int64_t channels_per_set(Sets sets, const PlaneShape& shape) {
  return sets == Sets::Group ? shape.channels / shape.groups : 1;
}

}  // namespace torchfastnorm
