// Switchable normalization (math/switch_norm.h), between the planes' moments or sums and apply: the planes of each
// sample and of each channel are merged, then every plane has its mean and rstd, or its coefficients of grad_x.
#pragma once
#include "../math/switch_norm.h"
#include "plane_loops.h"

namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET {

inline SwitchPair<double> switch_weights(const Switch& mix) {
  SwitchPair<double> weights;
  by_type(mix.type, [&](auto element) {
    using P = const decltype(element)*;
    softmax(mix.terms, [&](int i) { return to_double(static_cast<P>(mix.mean_logits) + i); }, weights.mean);
    softmax(mix.terms, [&](int i) { return to_double(static_cast<P>(mix.var_logits) + i); }, weights.var);
  });
  return weights;
}
template <class CALL>
SwitchFactors<double> factors_of(const CALL& call) {
  const PlaneShape& shape = call.arguments->shape;
  return switch_factors<double>(call.arguments->mix, shape.samples, shape.channels, shape.spatial);
}

// Means or variances behind the mixed ones (interface/plane_norm.h): of planes, of samples, of channels.
template <class A>
struct Terms {
  A *planes, *samples, *channels;
};
template <class A, class CALL, class P>
Terms<A> terms_of(const CALL& call, P* values) {
  A* const planes = static_cast<A*>(const_cast<void*>(values)) + call.geometry.sets();
  A* const samples = planes + call.geometry.sets();
  return {planes, samples, samples + call.geometry.slabs};
}

template <class A>
struct SwitchForward {
  using Call = PlaneForwardCall;

  static double var_of(const Moments& plane) { return plane.count > 1 ? plane.squares / (plane.count - 1) : 0; }

  static void samples(const Call& call, int64_t begin, int64_t end) {
    const int64_t channels = call.geometry.channels;
    const Terms<A> means = terms_of<A>(call, call.mean), vars = terms_of<A>(call, call.rstd);
    const SwitchFactors<double> factors = factors_of(call);
    for (int64_t sample = begin; sample < end; ++sample) {
      const Moments* const planes = call.of_sets + sample * channels;
      double sum = 0, spread = 0;
      for (int64_t c = 0; c < channels; ++c) sum += planes[c].mean;
      const double mean = sum * factors.share[1];
      for (int64_t c = 0; c < channels; ++c) {
        const double distance = planes[c].mean - mean, var = var_of(planes[c]);
        spread += var + distance * distance;
        means.planes[sample * channels + c] = A(planes[c].mean);
        vars.planes[sample * channels + c] = A(var);
      }
      means.samples[sample] = A(mean);
      vars.samples[sample] = A(spread * factors.share[1] * factors.bessel[1]);
    }
  }

  static void channels(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const Terms<A> means = terms_of<A>(call, call.mean), vars = terms_of<A>(call, call.rstd);
    const SwitchFactors<double> factors = factors_of(call);
    const double share = 1 / double(g.slabs);
    double mean[kTile], spread[kTile];
    for (int64_t tile = begin; tile < end; tile += kTile) {
      const int64_t width = end - tile < kTile ? end - tile : kTile;
      const Moments* const planes = call.of_sets + tile;
      for (int64_t c = 0; c < width; ++c) mean[c] = spread[c] = 0;
      for (int64_t sample = 0; sample < g.slabs; ++sample)
        for (int64_t c = 0; c < width; ++c) mean[c] += planes[sample * g.channels + c].mean;
      for (int64_t c = 0; c < width; ++c) mean[c] *= share;
      for (int64_t sample = 0; sample < g.slabs; ++sample)
        for (int64_t c = 0; c < width; ++c) {
          const Moments& plane = planes[sample * g.channels + c];
          const double distance = plane.mean - mean[c];
          spread[c] += var_of(plane) + distance * distance;
        }
      for (int64_t c = 0; c < width; ++c) {
        double var = spread[c] * share * factors.bessel[2];
        batch_term(*call.arguments, tile + c, mean[c], var);
        means.channels[tile + c] = A(mean[c]);
        vars.channels[tile + c] = A(var);
      }
    }
  }

  // The running statistics of a channel move, or take the place of the batch's.
  static void batch_term(const PlaneNormForward& a, int64_t channel, double& mean, double& var) {
    if (!a.running_mean) return;
    by_type(a.running_type, [&](auto element) {
      auto* const running_mean = static_cast<decltype(element)*>(a.running_mean) + channel;
      auto* const running_var = static_cast<decltype(element)*>(a.running_var) + channel;
      if (a.mix.constant_batch) {
        mean = to_double(running_mean), var = to_double(running_var);
        return;
      }
      const double keep = a.mix.average ? 1 - a.momentum : 1, share = a.mix.average ? a.momentum : 1;
      from_double(running_mean, keep * to_double(running_mean) + share * mean);
      from_double(running_var, keep * to_double(running_var) + share * (a.mix.average ? var : var + mean * mean));
    });
  }

  static void planes(const Call& call, int64_t begin, int64_t end) {
    const int64_t channels = call.geometry.channels;
    const Terms<A> means = terms_of<A>(call, call.mean), vars = terms_of<A>(call, call.rstd);
    const SwitchPair<double> weights = switch_weights(call.arguments->mix);
    for (int64_t sample = begin; sample < end; ++sample) {
      const Moments* const of_planes = call.of_sets + sample * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const double mean[] = {of_planes[c].mean, double(means.samples[sample]), double(means.channels[c])};
        const double var[] = {var_of(of_planes[c]), double(vars.samples[sample]), double(vars.channels[c])};
        const int64_t plane = sample * channels + c;
        static_cast<A*>(call.mean)[plane] = A(mixed(weights.mean, mean));
        static_cast<A*>(call.rstd)[plane] = A(1 / __builtin_sqrt(mixed(weights.var, var) + call.arguments->eps));
      }
    }
  }
};

template <class A>
struct SwitchBackward {
  using Call = PlaneBackwardCall;

  // Of a plane's mean and var, divided by its number of elements.
  struct Gradient {
    double mean, var;
  };
  static TFN_INLINE Gradient gradient_of(const Call& call, int64_t plane, double share) {
    const double rstd = double(static_cast<const A*>(call.arguments->rstd)[plane]);
    const GradientSums& sums = call.of_planes[plane];
    return {-rstd * sums.g * share, -0.5 * rstd * rstd * rstd * sums.g_centered * share};
  }
  static double share_of(const Call& call) { return 1 / double(call.geometry.spatial); }

  static void samples(const Call& call, int64_t begin, int64_t end) {
    const double share = share_of(call);
    for (int64_t sample = begin; sample < end; ++sample) {
      double mean = 0, var = 0;
      for (int64_t c = 0; c < call.geometry.channels; ++c) {
        const Gradient grad = gradient_of(call, sample * call.geometry.channels + c, share);
        mean += grad.mean, var += grad.var;
      }
      call.of_groups[2 * sample] = mean, call.of_groups[2 * sample + 1] = var;
    }
  }

  static SwitchPair<double> moments_of(const Terms<A>& means, const Terms<A>& vars, int64_t sample, int64_t c,
                                       int64_t plane) {
    return {{double(means.planes[plane]), double(means.samples[sample]), double(means.channels[c])},
            {double(vars.planes[plane]), double(vars.samples[sample]), double(vars.channels[c])}};
  }

  // Of each channel {mean, var}, then for each term what the gradients of its logits are made of.
  static constexpr int64_t kOfChannel = 2 + 2 * switch_terms;
  static double* of_channels(const Call& call) { return call.of_groups + 2 * call.geometry.slabs; }
  static void channels(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const Terms<A> means = terms_of<A>(call, call.arguments->mean), vars = terms_of<A>(call, call.arguments->rstd);
    const SwitchPair<double> weights = switch_weights(call.arguments->mix);
    const double share = share_of(call);
    double* const of_channel = of_channels(call);
    for (int64_t i = kOfChannel * begin; i < kOfChannel * end; ++i) of_channel[i] = 0;
    for (int64_t sample = 0; sample < g.slabs; ++sample)
      for (int64_t c = begin; c < end; ++c) {
        const int64_t plane = sample * g.channels + c;
        const Gradient grad = gradient_of(call, plane, share);
        const SwitchPair<double> moments = moments_of(means, vars, sample, c, plane);
        const double mean = mixed(weights.mean, moments.mean), var = mixed(weights.var, moments.var);
        double* const sums = of_channel + kOfChannel * c;
        sums[0] += grad.mean, sums[1] += grad.var;
        for (int k = 0; k < switch_terms; ++k) {
          sums[2 + 2 * k] += grad.mean * (moments.mean[k] - mean);
          sums[3 + 2 * k] += grad.var * (moments.var[k] - var);
        }
      }
  }

  static void planes(const Call& call, int64_t begin, int64_t end) {
    const PlaneGeometry& g = call.geometry;
    const Terms<A> means = terms_of<A>(call, call.arguments->mean), vars = terms_of<A>(call, call.arguments->rstd);
    const SwitchPair<double> weights = switch_weights(call.arguments->mix);
    const SwitchFactors<double> factors = factors_of(call);
    const double share = share_of(call);
    for (int64_t sample = begin; sample < end; ++sample)
      for (int64_t c = 0; c < g.channels; ++c) {
        const int64_t plane = sample * g.channels + c;
        const Gradient grad = gradient_of(call, plane, share);
        const double *const of_sample = call.of_groups + 2 * sample, *const of_channel =
                                                                         of_channels(call) + kOfChannel * c;
        const SwitchPair<double> moments = moments_of(means, vars, sample, c, plane);
        const auto [slope, offset] = switch_gradient(
            weights, moments, {{grad.mean, of_sample[0], of_channel[0]}, {grad.var, of_sample[1], of_channel[1]}},
            factors);
        A* const coefficients = static_cast<A*>(call.coefficients) + 2 * plane;
        coefficients[0] = A(slope), coefficients[1] = A(offset);
      }
  }

  static void logits(const Call& call) {
    const PlaneNormBackward& a = *call.arguments;
    const double elements = double(call.geometry.spatial), *const sums = of_channels(call);
    const SwitchPair<double> weights = switch_weights(a.mix);
    for (int k = 0, i = 0; k < switch_terms; ++k) {
      if (!(a.mix.terms >> k & 1)) continue;
      double mean = 0, var = 0;
      for (int64_t c = 0; c < call.geometry.channels; ++c) {
        mean += sums[kOfChannel * c + 2 + 2 * k];
        var += sums[kOfChannel * c + 3 + 2 * k];
      }
      by_type(a.mix.type, [&](auto element) {
        using P = decltype(element)*;
        if (a.grad_mean_logits) from_double(static_cast<P>(a.grad_mean_logits) + i, weights.mean[k] * elements * mean);
        if (a.grad_var_logits) from_double(static_cast<P>(a.grad_var_logits) + i, weights.var[k] * elements * var);
      });
      ++i;
    }
  }
};

}  // namespace torchfastnorm::cpu::TFN_INSTRUCTION_SET
