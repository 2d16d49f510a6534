// One call's tensors in ATen operations, for the composite formulas of the plane norms. All arithmetic is in the
// statistics' type, as the kernels'; tensors are seen as (samples, sets or groups of channels, channels of a set,
// spatial).
#pragma once
#include "common/planes.h"
#include "plane_norm.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <c10/core/AutogradState.h>

namespace torchfastnorm::bindings {

class Planes;

// Batch Renormalization (batch_renorm_composite.cpp), as math/renorm.h has it: r and d are constants, what the others
// make of var is differentiated.
struct Renormed {
  Tensor scale, shift, of_product, of_sum;
};
Renormed renormed(const Planes&, const Tensor& var, const Tensor& r, const Tensor& d);
// r and d of a batch, from its statistics and the running ones.
std::pair<Tensor, Tensor> renorm_correction(const Planes&, const Tensor& mean, const Tensor& var);
// 1 / sigma_run, and what running_var moves to.
Tensor renorm_running_rstd(const Planes&);
Tensor renorm_target(const Planes&, const Tensor& var);

// Switchable normalization (switch_norm_composite.cpp).
struct SwitchTermTensors {
  Tensor mean, var;
  int64_t dim;    // along which planes share it; -1: each has its own
  double factor;  // of its variance
  bool constant;
};
struct Switched {
  std::vector<SwitchTermTensors> terms;  // those there are
  SwitchTermTensors plane;
  Tensor p, q, mean, var, rstd, batch_mean, batch_var;
};
// constant_mean, constant_var: take the batch's place.
Switched switch_statistics(const Planes&, const Tensor& x, const OptTensor& constant_mean,
                           const OptTensor& constant_var);
struct SwitchGradients {
  Tensor x, mean_weight, var_weight;
};
// g: of x_hat
SwitchGradients switch_gradients(const Planes&, const Switched&, const Tensor& x, const Tensor& x_hat, const Tensor& g);

// The common shape, and the sums over a set and over a channel.
class Planes {
 public:
  explicit Planes(const PlaneNormInputs& in)
      : in_(in), type_(statistics_type(in.x.scalar_type())), activation_(activation_named(in.name(), in.activation)) {
    const auto sizes = in.x.sym_sizes();
    const c10::SymInt samples = sizes.empty() ? c10::SymInt(1) : sizes[0];
    channels_ = sizes.size() > 1 ? sizes[1] : c10::SymInt(0);
    c10::SymInt spatial = 1;
    for (size_t d = 2; d < sizes.size(); ++d) spatial *= sizes[d];
    const bool group = in.sets == Sets::Group;
    per_set_ = group ? channels_ / in.groups : c10::SymInt(1);
    const c10::SymInt sets = group ? c10::SymInt(in.groups) : channels_;
    shape_ = {samples, sets, per_set_, spatial};
    per_channel_ = {1, sets, per_set_, 1};
    if (in.sets == Sets::Batch) dims_.insert(dims_.begin(), 0);
    if (has(in.mask)) {
      std::vector<c10::SymInt> full(sizes.begin(), sizes.end());
      if (full.size() > 1) full[1] = 1;
      mask_ = in.mask->expand_symint(full).reshape_symint({samples, 1, 1, spatial});
      count_ = (mask_.to(type_).sum(dims_, /*keepdim=*/true) * per_set_).clamp_min(1);
    } else {
      const auto elements = spatial * per_set_ * (in.sets == Sets::Batch ? samples : c10::SymInt(1));
      count_ = at::full({}, elements, in.x.options().dtype(type_));
    }
  }

  Tensor planes(const Tensor& t) const { return t.to(type_).reshape_symint(shape_); }
  Tensor channel(const Tensor& t) const { return t.to(type_).reshape_symint(per_channel_); }
  Tensor counted(const Tensor& t) const { return mask_.defined() ? at::where(mask_, t, 0) : t; }
  Tensor mean(const Tensor& counted) const { return counted.sum(dims_, /*keepdim=*/true) / count_; }
  Tensor sum_of_channel(const Tensor& t) const { return t.sum(at::IntArrayRef{0, 3}).reshape_symint({channels_}); }
  Tensor as_input(const Tensor& t, at::ScalarType type) const { return t.to(type).reshape_symint(in_.x.sym_sizes()); }
  Tensor scaled(const Tensor& t) const { return has(in_.weight) ? t * channel(*in_.weight) : t; }
  Activation activation() const { return activation_; }

  // What the activation is applied to.
  Tensor shifted(const Tensor& x_hat) const {
    auto z = scaled(x_hat);
    if (has(in_.bias)) z = z + channel(*in_.bias);
    if (has(in_.residual)) z = z + counted(planes(*in_.residual));
    return z;
  }

  // The bits of interface/plane_signs.h, in the layout that forward saw.
  Tensor positive(const Tensor& signs) const {
    const auto& [samples, sets, width, spatial] = std::tie(shape_[0], shape_[1], shape_[2], shape_[3]);
    const bool by_planes = spatial != 1 && dense(in_.x).is_contiguous();
    const auto runs = samples * (by_planes ? channels_ : spatial), elements = by_planes ? spatial : channels_;
    const int64_t of_byte = 16 / in_.x.element_size();
    const auto run = (elements + of_byte - 1) / of_byte;
    const auto bits = signs.narrow_symint(0, 0, runs * run).reshape_symint({runs, run, 1});
    const auto ones = bits.bitwise_right_shift(at::arange(of_byte, signs.options())).bitwise_and(1).to(at::kBool);
    const auto all = ones.reshape_symint({runs, run * of_byte}).narrow_symint(1, 0, elements);
    if (by_planes) return all.reshape_symint(shape_);
    return all.reshape_symint({samples, spatial, channels_}).transpose(1, 2).reshape_symint(shape_);
  }

  void update_running(const Tensor& mean, const Tensor& var) const {
    const at::NoGradGuard no_grad;
    const c10::AutoFwGradMode no_tangents(false);
    const auto batched = [](const Tensor& t) { return t.key_set().has(c10::DispatchKey::FuncTorchBatched); };
    TORCH_CHECK(!has(in_.running_mean) || !batched(mean) || (batched(*in_.running_mean) && batched(*in_.running_var)),
                in_.name(), "(): under vmap every element of the batch would update the same running_mean and ",
                "running_var; map over these too, or call without them (track_running_stats=False)");
    Tensor factor;
    if (has(in_.batches)) in_.batches->add_(1);
    if (!in_.momentum) factor = in_.batches->to(type_).reciprocal();
    if (!has(in_.running_mean) || in_.x.sym_numel() == 0) return;  // of an empty batch nothing is learnt
    const auto update = [&](const Tensor& running, const Tensor& statistic) {
      const auto average = statistic.mean(at::IntArrayRef{0}).reshape_symint({channels_}).to(running.scalar_type());
      if (!in_.moving_average)
        running.add_(average);
      else if (factor.defined())
        running.add_((average - running) * factor);
      else
        running.mul_(1 - *in_.momentum).add_(average, *in_.momentum);
    };
    update(*in_.running_mean, mean);
    auto target = var;
    if (!in_.switchable()) target = in_.renorms() ? renorm_target(*this, var) : var * bessel();
    if (!in_.moving_average) target = var + mean * mean;
    update(*in_.running_var, target);
  }

  const Tensor& elements() const { return count_; }  // of a set
  Tensor bessel() const { return count_ / (count_ - 1).clamp_min(1); }
  const PlaneNormInputs& inputs() const { return in_; }

 private:
  const PlaneNormInputs& in_;
  at::ScalarType type_;
  Activation activation_;
  c10::SymInt channels_, per_set_;
  std::vector<c10::SymInt> shape_, per_channel_;
  std::vector<int64_t> dims_{2, 3};
  Tensor mask_, count_;
};

}  // namespace torchfastnorm::bindings
