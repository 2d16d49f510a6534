// Batch Renormalization in ATen operations: math/renorm.h has the formulas.
#include "plane_norm_composite.h"

#define AT_PER_OPERATOR_HEADERS
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

namespace torchfastnorm::bindings {

Renormed renormed(const Planes& planes, const Tensor& var, const Tensor& r, const Tensor& d) {
  const auto& in = planes.inputs();
  if (in.renorm == "sb3") {
    const auto square = var * planes.bessel(), scale = (square / (r * r) + in.eps).rsqrt();
    const auto deviation = at::where(square > 0, square, 1).sqrt(), slope = scale * scale / (r * r);
    const auto of_d = at::where(square > 0, d / r * scale, 0);
    return {scale, of_d * deviation, -planes.bessel() * slope,
            planes.bessel() * of_d * (deviation.reciprocal() - deviation * slope)};
  }
  if (in.renorm == "ludvb") {
    const auto deviation = at::where(var > 0, var, 1).sqrt();
    const auto inverse = (at::where(var > 0, deviation, 0) + in.eps).reciprocal();
    return {r * inverse, d, at::where(var > 0, -inverse / deviation, 0), at::zeros_like(var)};
  }
  const auto rstd = (var + in.eps).rsqrt();
  return {r * rstd, d, -rstd * rstd, at::zeros_like(var)};
}

std::pair<Tensor, Tensor> renorm_correction(const Planes& planes, const Tensor& mean, const Tensor& var) {
  const auto& in = planes.inputs();
  const auto of_running = renorm_running_rstd(planes);
  const auto sigma = in.renorm == "ludvb" ? var.sqrt() + in.eps
                     : in.renorm == "sb3" ? (var * planes.bessel() + in.eps).sqrt()
                                          : (var + in.eps).sqrt();
  const auto bound = [&](double least, double most, double begin, double end) {
    const auto value = at::full({}, most, var.options());
    if (!has(in.batches)) return value;
    const auto line = (in.batches->to(var.scalar_type()) - begin) / (end > begin ? end - begin : 1);
    const auto ramp = at::where(*in.batches <= begin, least, least + (most - least) * line);  // most may be infinite
    return at::where(*in.batches >= end, value, ramp);
  };
  const auto& b = in.bounds;
  const auto r_max = bound(1, b.r_max, b.r_begin, b.r_end), d_max = bound(0, b.d_max, b.d_begin, b.d_end);
  const auto r = at::minimum(at::maximum(sigma * of_running, r_max.reciprocal()), r_max);
  const auto d = at::minimum(at::maximum((mean - planes.channel(*in.running_mean)) * of_running, -d_max), d_max);
  return {r, d};
}

Tensor renorm_running_rstd(const Planes& planes) {
  const auto var = planes.channel(*planes.inputs().running_var);
  return planes.inputs().renorm == "ludvb" ? var.reciprocal() : (var + planes.inputs().eps).rsqrt();
}

Tensor renorm_target(const Planes& planes, const Tensor& var) {
  const auto& in = planes.inputs();
  if (in.renorm == "ludvb") return var.sqrt() + in.eps;
  if (in.renorm != "torchrl") return var * planes.bessel();
  const double samples = double(in.x.sym_size(0).guard_int(__FILE__, __LINE__));
  return var * (samples / std::max(samples - 1, 1.));
}

}  // namespace torchfastnorm::bindings
