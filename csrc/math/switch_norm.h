// Switchable normalization (Luo, Ren, Peng, Zhang, Li 2018, arXiv 1806.10779): the mean and the variance of a plane,
// mixed from those of the plane itself, of its sample and of its channel.
//
//   instance   mean, unbiased variance of the plane (0 of one element)
//   layer      of the sample's planes: mean of their means, mean of their variances + variance of their means
//   batch      of the channel's planes, alike
//
//   p, q = softmax of the logits, over the terms there are        mean = sum(p * means)        var = sum(q * vars)
//
// `unbiased` multiplies the variances of layer and batch by n / (n - 1). T is float or double.
#pragma once
#include "../interface/types.h"
#include "host_device.h"

namespace torchfastnorm {

constexpr int switch_terms = 3;

// Of a plane: its own, its sample's, its channel's.
template <class T>
struct SwitchPair {
  T mean[switch_terms], var[switch_terms];
};

// What a call's sizes make of the gradients, per term.
template <class T>
struct SwitchFactors {
  T share[switch_terms];   // 1 / how many planes share the statistic; 0: it is a constant
  T bessel[switch_terms];  // of its variance
  T elements;              // of a plane
};

template <class T>
SwitchFactors<T> switch_factors(const Switch& mix, int64_t samples, int64_t channels, int64_t spatial) {
  const auto bessel = [](int64_t n) { return n > 1 ? T(double(n) / double(n - 1)) : T(0); };
  return {{T(1), T(1.0 / double(channels)), mix.constant_batch ? T(0) : T(1.0 / double(samples))},
          {bessel(spatial), mix.unbiased ? bessel(channels) : T(1), mix.unbiased ? bessel(samples) : T(1)},
          T(spatial)};
}

// at(i): the i-th logit. Zero where there is no such term.
template <class T, class At>
TFN_HOST_DEVICE void softmax(unsigned terms, At at, T (&weights)[switch_terms]) {
  using std::exp;
  T most = at(0), sum = T(0);
  for (int k = 0, i = 0; k < switch_terms; ++k) {
    weights[k] = terms >> k & 1 ? at(i++) : T(0);
    if (terms >> k & 1) most = weights[k] > most ? weights[k] : most;
  }
  for (int k = 0; k < switch_terms; ++k) {
    weights[k] = terms >> k & 1 ? exp(weights[k] - most) : T(0);
    sum += weights[k];
  }
  for (int k = 0; k < switch_terms; ++k) weights[k] = quotient(weights[k], sum);
}

// What has no weight has no say, be it infinite or NaN: it may come from another sample.
template <class T>
TFN_HOST_DEVICE T weighted(T weight, T value) {
  return weight == T(0) ? T(0) : weight * value;
}
template <class T>
TFN_HOST_DEVICE T mixed(const T (&weights)[switch_terms], const T (&values)[switch_terms]) {
  return weighted(weights[0], values[0]) + weighted(weights[1], values[1]) + weighted(weights[2], values[2]);
}

// Backward. g = grad_y * weight. A plane's gradients of its mean and var, divided by its number of elements:
//   grad_mean = -rstd * mean(g)        grad_var = -rstd^2 / 2 * mean(g * x_hat)
// `grads` holds them and their sums over the sample's and the channel's planes. Then
//   grad_x = rstd * g + slope * (x - mean) + offset
template <class T>
struct SwitchGradient {
  T slope, offset;
};
template <class T>
TFN_HOST_DEVICE SwitchGradient<T> switch_gradient(const SwitchPair<T>& weights, const SwitchPair<T>& moments,
                                                  const SwitchPair<T>& grads, const SwitchFactors<T>& factors) {
  T of_means = T(0), of_vars = T(0);
  for (int k = 0; k < switch_terms; ++k) {
    const T of_var = weighted(weights.var[k] * factors.share[k], grads.var[k]);
    of_vars += of_var;
    of_means += weighted(weights.mean[k] * factors.share[k], grads.mean[k]) +
                weighted(of_var, T(2) * factors.bessel[k] * (moments.mean[0] - moments.mean[k]));
  }
  const T slope = T(2) * factors.bessel[0] * of_vars;
  return {slope, of_means + slope * (mixed(weights.mean, moments.mean) - moments.mean[0])};
}

// The gradient of a term's logit is  weight * elements * sum over the planes of grad * (the term's value - the mixed
// one):  small factors, where sums of grad * value would cancel.

}  // namespace torchfastnorm
