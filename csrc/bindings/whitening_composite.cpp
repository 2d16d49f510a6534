// The formulas of whitening in ATen operations. They run where a kernel cannot: under torch.func transforms and
// forward-mode AD, and for every derivative after the first. All arithmetic is in the statistics' type, as the
// kernels'.
#include "whitening.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/TensorOperators.h>
#include <c10/core/AutogradState.h>

namespace torchfastnorm::bindings {
namespace {

class Positions {
 public:
  explicit Positions(const WhiteningInputs& in)
      : in_(in), type_(statistics_type(in.x.scalar_type())), groups_(in.x.sym_size(1) / in.width) {
    positions_ = in.x.sym_size(0);
    for (int64_t d = 2; d < in.x.dim(); ++d) positions_ *= in.x.sym_size(d);
    count_ = positions_.max(1);
  }
  const c10::SymInt& count() const { return count_; }  // 1 where there are none: of nothing, all sums are 0
  // (groups, width, positions)
  Tensor columns(const Tensor& t) const {
    return t.to(type_).movedim(1, 0).reshape_symint({groups_, in_.width, positions_});
  }
  Tensor as_input(const Tensor& t) const {
    std::vector<c10::SymInt> sizes(in_.x.sym_sizes().begin(), in_.x.sym_sizes().end());
    std::swap(sizes[0], sizes[1]);
    return t.reshape_symint(sizes).movedim(0, 1).to(in_.x.scalar_type());
  }
  Tensor channel(const Tensor& t) const { return t.to(type_).reshape_symint({groups_, in_.width, 1}); }
  Tensor wm(const Tensor& t) const { return t.to(type_); }
  Tensor flat(const Tensor& t) const { return t.reshape_symint({in_.x.sym_size(1)}); }
  Tensor covariance(const Tensor& centred) const { return centred.matmul(centred.transpose(-2, -1)) / count_; }
  Tensor mean(const Tensor& t) const { return t.sum(-1, /*keepdim=*/true) / count_; }
  WhiteningMethod method() const { return whitening_method(in_.method, in_.iterations, in_.eps); }

 private:
  const WhiteningInputs& in_;
  at::ScalarType type_;
  c10::SymInt groups_, positions_, count_;
};

void check_update(const WhiteningInputs& in, const Tensor& mean) {
  const auto batched = [](const Tensor& t) { return t.key_set().has(c10::DispatchKey::FuncTorchBatched); };
  TORCH_CHECK(!in.updates() || !batched(mean) || (batched(*in.running_mean) && batched(*in.running_wm)),
              "batch_whitening(): under vmap every element of the batch would update the same running_mean and ",
              "running_wm; map over these too, or call without them");
}

}  // namespace

Tensor whitening_composite(const WhiteningInputs& in) {
  check_whitening(in);
  const FullPrecision full_precision;
  const Positions positions(in);
  const auto x = positions.columns(in.x);
  const auto mean = in.training ? positions.mean(x) : positions.channel(*in.running_mean);
  const auto centred = x - mean;
  const auto wm =
      in.training ? Refined(positions.covariance(centred), positions.method()).matrix() : positions.wm(*in.running_wm);
  auto y = wm.matmul(centred);
  if (has(in.weight)) y = y * positions.channel(*in.weight);
  if (has(in.bias)) y = y + positions.channel(*in.bias);
  const auto result = positions.as_input(y);
  check_update(in, mean);
  const at::NoGradGuard no_grad;
  const c10::AutoFwGradMode no_tangents(false);
  update_running_whitening(in, mean, wm);
  return result;
}

WhiteningGradients whitening_backward_composite(const WhiteningInputs& in, const Tensor& grad_y, const Tensor& mean_,
                                                const Tensor& wm_, at::ScalarType param_dtype, WhiteningWanted wanted) {
  const FullPrecision full_precision;
  const Positions positions(in);
  const auto x = positions.columns(in.x), grad = positions.columns(grad_y);
  const auto mean = in.training ? positions.mean(x) : positions.channel(mean_);
  const auto centred = x - mean;
  std::optional<Refined> refined;
  if (in.training) refined.emplace(positions.covariance(centred), positions.method());
  const auto wm = in.training ? refined->matrix() : positions.wm(wm_);
  const auto full = grad.matmul(centred.transpose(-2, -1));
  WhiteningGradients results;
  auto& [grad_x, grad_weight, grad_bias] = results;
  if (wanted[1]) grad_weight = positions.flat((wm * full).sum(-1)).to(param_dtype);
  if (wanted[2]) grad_bias = positions.flat(grad.sum(-1)).to(param_dtype);
  if (wanted[0]) {
    auto g = has(in.weight) ? grad * positions.channel(*in.weight) : grad;
    if (in.training) g = g - positions.mean(g);
    g = wm.transpose(-2, -1).matmul(g);
    if (in.training) {
      const auto grad_wm = has(in.weight) ? full * positions.channel(*in.weight) : full;
      g = g + refined->covariance_gradient(grad_wm).matmul(centred) * 2 / positions.count();
    }
    grad_x = positions.as_input(g);
  }
  return results;
}

}  // namespace torchfastnorm::bindings
