// The scalar formulas of every norm, once, for both backends. T is float, double or a SIMD vector of them.
#pragma once
#include "host_device.h"

namespace torchfastnorm {

// Subtract before scaling: x * rstd - mean * rstd cancels when |mean| is large beside the deviation.
template <class T>
TFN_HOST_DEVICE T normalize(T x, T mean, T rstd) {
  return (x - mean) * rstd;
}

template <class T>
TFN_HOST_DEVICE T affine(T x_hat, T weight, T bias) {
  return x_hat * weight + bias;
}

// Gradient of the normalised set, from g = grad_y * weight and the two means over the set. An op that does not
// subtract the mean (RMSNorm) passes mean_g = 0.
template <class T>
TFN_HOST_DEVICE T input_gradient(T g, T x_hat, T rstd, T mean_g, T mean_g_x_hat) {
  return rstd * (g - mean_g - x_hat * mean_g_x_hat);
}

// The same for planes, where all but x and g is fixed for a channel or a plane: scale = rstd * weight,
// slope = -rstd^2 * mean_g_x_hat, offset = -rstd * mean_g. Forward is affine(x - mean, scale, bias).
template <class T>
TFN_HOST_DEVICE T plane_gradient(T g, T centered, T scale, T slope, T offset) {
  return scale * g + (slope * centered + offset);
}

}  // namespace torchfastnorm
