// Switchable normalization in ATen operations: math/switch_norm.h has the formulas. Statistics of planes are (samples,
// channels, 1, 1); those of samples and of channels have a 1 in the other's place.
#include "plane_norm_composite.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>

namespace torchfastnorm::bindings {
namespace {

double bessel(const c10::SymInt& size) {
  const double n = double(size.guard_int(__FILE__, __LINE__));
  return n > 1 ? n / (n - 1) : 1;
}

// The statistic that the planes along `dim` share, from theirs.
SwitchTermTensors merged(const Switched& s, int64_t dim, double factor) {
  const auto mean = s.terms[0].mean.mean(dim, /*keepdim=*/true), distance = s.terms[0].mean - mean;
  return {mean, (s.terms[0].var + distance * distance).mean(dim, /*keepdim=*/true) * factor, dim, factor, false};
}

}  // namespace

Switched switch_statistics(const Planes& planes, const Tensor& x, const OptTensor& constant_mean,
                           const OptTensor& constant_var) {
  const auto& in = planes.inputs();
  const auto terms = switch_terms_of(in);
  const bool unbiased = in.x.dim() == 2 && in.mean_weight->sym_size(0).guard_int(__FILE__, __LINE__) == 2;
  Switched s;
  const auto mean = planes.mean(x), deviation = x - mean;
  s.terms.push_back({mean, planes.mean(deviation * deviation) * planes.bessel(), -1, 0, false});
  const auto layer = merged(s, 1, unbiased ? bessel(in.x.sym_size(1)) : 1);
  auto batch = merged(s, 0, unbiased ? bessel(in.x.sym_size(0)) : 1);
  s.batch_mean = batch.mean, s.batch_var = batch.var;
  if (has(constant_mean)) batch = {planes.channel(*constant_mean), planes.channel(*constant_var), 0, 0, true};
  s.p = at::softmax(in.mean_weight->to(x.scalar_type()), 0);
  s.q = at::softmax(in.var_weight->to(x.scalar_type()), 0);
  s.plane = s.terms[0];
  if (!(terms & SwitchInstance)) s.terms.clear();
  if (terms & SwitchLayer) s.terms.push_back(layer);
  if (terms & SwitchBatch) s.terms.push_back(batch);
  for (size_t k = 0; k < s.terms.size(); ++k) {
    const auto of_mean = s.p.select(0, int64_t(k)) * s.terms[k].mean,
               of_var = s.q.select(0, int64_t(k)) * s.terms[k].var;
    s.mean = k == 0 ? of_mean : s.mean + of_mean;
    s.var = k == 0 ? of_var : s.var + of_var;
  }
  s.rstd = (s.var + in.eps).rsqrt();
  return s;
}

SwitchGradients switch_gradients(const Planes& planes, const Switched& s, const Tensor& x, const Tensor& x_hat,
                                 const Tensor& g) {
  const auto elements = planes.elements();
  const auto of_mean = -s.rstd * planes.mean(g), of_var = -0.5 * s.rstd * s.rstd * planes.mean(g * x_hat);
  Tensor constant, slope;
  std::vector<Tensor> of_p, of_q;
  for (size_t k = 0; k < s.terms.size(); ++k) {
    const auto& term = s.terms[k];
    of_p.push_back((of_mean * (term.mean - s.mean)).sum() * elements);
    of_q.push_back((of_var * (term.var - s.var)).sum() * elements);
    if (term.constant) continue;
    auto mean = s.p.select(0, int64_t(k)) * of_mean, var = s.q.select(0, int64_t(k)) * of_var;
    if (term.dim >= 0) {
      mean = mean.mean(term.dim, /*keepdim=*/true), var = var.mean(term.dim, /*keepdim=*/true);
      mean = mean + var * (2 * term.factor) * (s.plane.mean - term.mean);
    }
    constant = constant.defined() ? constant + mean : mean;
    slope = slope.defined() ? slope + var : var;
  }
  SwitchGradients result;
  result.x = g * s.rstd;
  if (constant.defined()) result.x = result.x + constant + slope * (2 * planes.bessel()) * (x - s.plane.mean);
  const auto& in = planes.inputs();
  result.mean_weight = (s.p * at::stack(of_p)).to(in.mean_weight->scalar_type());
  result.var_weight = (s.q * at::stack(of_q)).to(in.var_weight->scalar_type());
  return result;
}

}  // namespace torchfastnorm::bindings
