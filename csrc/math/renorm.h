// Batch Renormalization (Ioffe 2017, arXiv 1702.03275) and its dialects: what a set's moments and the running
// statistics make of x. r and d are constants to the gradient.
//
//   r = clamp(sigma / sigma_run, 1 / r_max, r_max)         d = clamp((mean - running_mean) / sigma_run, -d_max, d_max)
//
//                    x_hat                                        sigma              sigma_run
//   Paper, TorchRl   (x - mean) / sigma * r + d                   sqrt(var + eps)    sqrt(running_var + eps)
//   Ludvb            (x - mean) / sigma * r + d                   sqrt(var) + eps    running_var, a deviation
//   Sb3              (x - mean + d * s / r) /                     sqrt(s^2 + eps)    sqrt(running_var + eps)
//                      sqrt(s^2 / r^2 + eps)                      s^2 = var * n / (n - 1)
//
// T is float or double.
#pragma once
#include "../interface/types.h"
#include "host_device.h"

namespace torchfastnorm {

// x_hat = (x - mean) * scale + shift. What the variance in scale and shift adds to grad_x:
//   (x - mean) * (of_product * mean(g * (x - mean) * scale) + of_sum * mean(g))
template <class T>
struct Renormed {
  T scale, shift, of_product, of_sum, r, d;
};

template <class T>
struct Running {
  T mean, var;
};

template <class T>
TFN_HOST_DEVICE T clamp(T value, T low, T high) {
  return value < low ? low : value > high ? high : value;  // a NaN stays
}

// 1 / sigma_run
template <class T>
TFN_HOST_DEVICE T running_rstd(Renorm dialect, T var, T eps) {
  return dialect == Renorm::Ludvb ? quotient(T(1), var) : inverse_sqrt(var + eps);
}

// Clamps r and d.
template <class T>
struct RenormLimits {
  T r_max, d_max;
};
template <class T>
TFN_HOST_DEVICE T limit_at(T batches, T least, T most, T begin, T end) {
  if (batches >= end) return most;
  return batches <= begin ? least : least + (most - least) * quotient(batches - begin, end - begin);
}
// After `batches` batches.
template <class T>
TFN_HOST_DEVICE RenormLimits<T> limits_at(T batches, const RenormBoundsOf<T>& b) {
  return {limit_at(batches, T(1), b.r_max, b.r_begin, b.r_end), limit_at(batches, T(0), b.d_max, b.d_begin, b.d_end)};
}

// var: biased; bessel: n / (n - 1)
template <class T>
TFN_HOST_DEVICE Renormed<T> renormed(Renorm dialect, T mean, T var, T bessel, Running<T> running, T eps,
                                     RenormLimits<T> limits) {
  const T of_running = running_rstd(dialect, running.var, eps), r_max = limits.r_max, least = quotient(T(1), r_max);
  const T d = clamp((mean - running.mean) * of_running, -limits.d_max, limits.d_max);
  if (dialect == Renorm::Sb3) {
    const T square = var * bessel, inverse = square > T(0) ? inverse_sqrt(square) : T(0);
    const T r = clamp(quotient(of_running, inverse_sqrt(square + eps)), least, r_max);
    const T of_r = quotient(T(1), r), scale = inverse_sqrt(square * of_r * of_r + eps);
    const T slope = scale * scale * of_r * of_r;
    return {scale,
            d * of_r * square * inverse * scale,
            -bessel * slope,
            bessel * d * of_r * scale * (inverse - square * inverse * slope),
            r,
            d};
  }
  const T inverse = dialect == Renorm::Ludvb && var > T(0) ? inverse_sqrt(var) : T(0);  // 1 / the deviation
  const T rstd = dialect == Renorm::Ludvb ? quotient(T(1), var * inverse + eps) : inverse_sqrt(var + eps);
  const T r = clamp(quotient(of_running, rstd), least, r_max);
  return {r * rstd, d, dialect == Renorm::Ludvb ? -rstd * inverse : -rstd * rstd, T(0), r, d};
}

// What running_var moves to. samples: of the batch.
template <class T>
TFN_HOST_DEVICE T running_target(Renorm dialect, T var, T unbiased, T samples, T eps) {
  if (dialect == Renorm::Ludvb) return var > T(0) ? var * inverse_sqrt(var) + eps : eps;
  return dialect == Renorm::TorchRl ? var * quotient(samples, samples > T(1) ? samples - T(1) : T(1)) : unbiased;
}

}  // namespace torchfastnorm
