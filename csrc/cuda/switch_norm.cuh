// Switchable normalization (math/switch_norm.h), between the planes' entries and apply. Both directions go the same
// way, the whole grid at each step:
//
//                     forward                                  backward
//   planes            {1, mean, var} of each plane             {1, grad_mean, grad_var} of each plane
//   groups            merged over each sample, each channel    merged alike
//   planes again      mean and rstd after mixing               slope and offset of grad_x
#pragma once
#include "../math/switch_norm.h"
#include "plane_combine.cuh"

namespace torchfastnorm::cuda {

// merge, weigh and f as of combine_grid, over groups of planes: every sample's (group i < samples), then every
// channel's, `turns` times. In two calls, because the lists are of different lengths.
template <class A, class Merge, class Weigh, class F>
__device__ __forceinline__ void combine_planes(const PlaneGeometry& g, const Entry<A>* planes, unsigned turns,
                                               Merge merge, Weigh weigh, F f) {
  combine_grid<A>(
      planes, g.samples, [&](int64_t i) -> EntryRange { return {i * g.channels, 0, 1, unsigned(g.channels)}; }, merge,
      weigh, f);
  combine_grid<A>(
      planes, turns * int64_t(g.channels),
      [&](int64_t i) -> EntryRange {
        return {i - int64_t(g.channels_divisor.quotient(uint32_t(i))) * g.channels, g.channels, unsigned(g.samples), 1};
      },
      merge, [&](const Entry<A>& e, int64_t i, unsigned k) { return weigh(e, g.samples + i, k); },
      [&](int64_t i, const Entry<A>& e) { f(g.samples + i, e); });
}

template <class A>
__device__ __forceinline__ SwitchPair<A> switch_weights(const SwitchArguments<A>& mix) {
  SwitchPair<A> weights;
  softmax(mix.terms, [&](int i) { return mix.mean_logits.at(i, A(0)); }, weights.mean);
  softmax(mix.terms, [&](int i) { return mix.var_logits.at(i, A(0)); }, weights.var);
  return weights;
}

// From (sets + samples + channels) values: those of a plane, its sample, its channel.
template <class A>
__device__ __forceinline__ void load_terms(const PlaneGeometry& g, const A* values, int64_t plane,
                                           A (&terms)[switch_terms]) {
  const uint32_t sample = g.channels_divisor.quotient(uint32_t(plane));
  terms[0] = load_written(values + plane);
  terms[1] = load_written(values + g.set_count + sample);
  terms[2] = load_written(values + g.set_count + g.samples + (plane - int64_t(sample) * g.channels));
}

template <class A>
__device__ __forceinline__ A chosen(const A (&terms)[switch_terms], int64_t term) {
  return term == 0 ? terms[0] : term == 1 ? terms[1] : terms[2];
}

template <class F>
__device__ __forceinline__ void for_planes(const PlaneGeometry& g, F f) {
#pragma unroll 1
  for (int64_t plane = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; plane < g.set_count;
       plane += int64_t(gridDim.x) * blockDim.x)
    f(plane);
}

// A plane's merged moments, to where the groups are merged from and behind the mixed statistics. (Arguments:
// PlaneForwardArguments, below PlaneBackwardArguments.)
template <class Arguments, class A>
__device__ __forceinline__ void store_moments(const Arguments& a, int64_t plane, const Entry<A>& e) {
  const A var = e.count > A(1) ? quotient(e.second, e.count - A(1)) : A(0);
  store_entry(a.mix.planes + plane, {A(1), e.first, var, A(0)});
  store(a.mean + a.geometry.set_count + plane, e.first);
  store(a.rstd + a.geometry.set_count + plane, var);
}

// The running statistics of a channel move, or take the place of the batch's.
template <class Arguments, class A>
__device__ __forceinline__ void batch_term(const Arguments& a, int64_t channel, A& mean, A& var) {
  const ChannelValues means{a.running_mean, a.running_type}, vars{a.running_var, a.running_type};
  if (a.mix.constant_batch) {
    if (a.running_mean != nullptr) mean = means.at(channel, A(0)), var = vars.at(channel, A(0));
  } else if (a.running_mean != nullptr) {
    const A keep = a.mix.average ? A(1) - a.momentum : A(1), share = a.mix.average ? a.momentum : A(1);
    const A of_var = a.mix.average ? var : var + mean * mean;
    store_channel(a.running_mean, a.running_type, channel, keep * means.at(channel, A(0)) + share * mean);
    store_channel(a.running_var, a.running_type, channel, keep * vars.at(channel, A(0)) + share * of_var);
  }
}

// After a grid barrier that follows store_moments; ends with one.
template <class A, class Arguments, class Merge>
__device__ __forceinline__ void switch_forward(const Arguments& a, Merge merge) {
  const PlaneGeometry& g = a.geometry;
  combine_planes(
      g, a.mix.planes, 1, merge, [](const Entry<A>& e, int64_t, unsigned) { return e; },
      [&](int64_t i, const Entry<A>& e) {
        const A count = a.mix.unbiased && e.count > A(1) ? e.count - A(1) : e.count;
        A mean = e.first, var = quotient(e.second, count);
        if (i >= g.samples) batch_term(a, i - g.samples, mean, var);
        store(a.mean + 2 * g.set_count + i, mean);
        store(a.rstd + 2 * g.set_count + i, var);
      });
  cooperative_groups::this_grid().sync();
  const SwitchPair<A> weights = switch_weights(a.mix);
  for_planes(g, [&](int64_t plane) {
    SwitchPair<A> moments;
    load_terms(g, a.mean + g.set_count, plane, moments.mean);
    load_terms(g, a.rstd + g.set_count, plane, moments.var);
    store(a.mean + plane, mixed(weights.mean, moments.mean));
    store(a.rstd + plane, inverse_sqrt(mixed(weights.var, moments.var) + a.eps));
  });
  cooperative_groups::this_grid().sync();
}

// means: of g * weight and g * weight * x_hat over the plane.
template <class Arguments, class A>
__device__ __forceinline__ void store_gradients(const Arguments& a, int64_t plane, const Entry<A>& means) {
  const A rstd = load_cached(a.rstd + plane), of_mean = -rstd * means.first,
          of_var = A(-0.5) * rstd * rstd * means.second;
  store_entry(a.mix.planes + plane, {A(1), of_mean, of_var, A(0)});
  store(a.mix.of_means + plane, of_mean);
  store(a.mix.of_vars + plane, of_var);
}

// After a grid barrier that follows store_gradients; ends with one. Leaves slope and offset in set_means.
template <class A, class Arguments, class Merge>
__device__ __forceinline__ void switch_backward(const Arguments& a, Merge merge) {
  const PlaneGeometry& g = a.geometry;
  const SwitchArguments<A>& mix = a.mix;
  const int64_t count = g.samples + g.channels;
  const A *const means = a.mean + g.set_count, *const vars = a.rstd + g.set_count;
  const SwitchPair<A> weights = switch_weights(mix);
  // Each sample, each channel; then, for each term, each channel again, of what the softmaxes' gradients are made of.
  combine_planes(
      g, mix.planes, 1 + switch_terms, merge,
      [&](Entry<A> e, int64_t i, unsigned k) {
        if (i < count) return e;
        const int64_t term = g.channels_divisor.quotient(uint32_t(i - count));
        const int64_t plane = i - count - term * g.channels + int64_t(k) * g.channels;
        SwitchPair<A> moments;
        load_terms(g, means, plane, moments.mean);
        load_terms(g, vars, plane, moments.var);
        e.first *= chosen(moments.mean, term) - mixed(weights.mean, moments.mean);
        e.second *= chosen(moments.var, term) - mixed(weights.var, moments.var);
        return e;
      },
      [&](int64_t i, const Entry<A>& e) {
        if (i >= count) return store_entry(mix.sums + (i - count), e);
        store(mix.of_means + g.set_count + i, e.first);
        store(mix.of_vars + g.set_count + i, e.second);
      });
  cooperative_groups::this_grid().sync();
  for_planes(g, [&](int64_t plane) {
    SwitchPair<A> moments, grads;
    load_terms(g, means, plane, moments.mean);
    load_terms(g, vars, plane, moments.var);
    load_terms(g, mix.of_means, plane, grads.mean);
    load_terms(g, mix.of_vars, plane, grads.var);
    const SwitchGradient<A> result = switch_gradient(weights, moments, grads, mix.factors);
    store(a.set_means + 2 * plane, result.slope);
    store(a.set_means + 2 * plane + 1, result.offset);
  });
  combine_grid<A>(
      mix.sums, switch_terms,
      [&](int64_t term) -> EntryRange { return {term * g.channels, 0, 1, unsigned(g.channels)}; }, merge,
      [](const Entry<A>& e, int64_t, unsigned) { return e; },
      [&](int64_t term, const Entry<A>& e) {
        if (!(mix.terms >> term & 1)) return;
        const int64_t logit = __popc(mix.terms & ((1u << term) - 1));
        const A of_mean = chosen(weights.mean, term), of_var = chosen(weights.var, term), n = mix.factors.elements;
        if (mix.grad_mean_logits != nullptr)
          store_channel(mix.grad_mean_logits, mix.mean_logits.type, logit, of_mean * n * e.first);
        if (mix.grad_var_logits != nullptr)
          store_channel(mix.grad_var_logits, mix.var_logits.type, logit, of_var * n * e.second);
      });
  cooperative_groups::this_grid().sync();
}

}  // namespace torchfastnorm::cuda
