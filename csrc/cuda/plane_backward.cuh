// Backward of the norms of feature maps: sums, combine, apply in one launch (plane_norm.cuh, plane_combine.cuh).
//
//   Team::Cluster   x and grad_y read once, grad_x written once
//   Team::Grid      both read again where no block had room to keep them; without batch statistics nothing depends on
//                   the sums, and everything is read and written in the first pass
//
// The activation's derivative is recomputed from x, the statistics and the parameters, and where there was a residual
// from that, or from the signs that forward kept. grad_weight and grad_bias come from the same sums: with Sets::Batch a
// set's own, otherwise added up over the samples from the table of entries, in the same launch (Grid) or by
// plane_parameter_gradients (Cluster).
#pragma once
#include "plane_forward.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct PlaneBackwardArguments : PlaneArguments<A> {
  const void* grad_y;
  const uint8_t* signs;  // or null
  const A* mean;         // (sets)
  const A* rstd;         // (sets)
  A* set_means;          // (sets, 2), Team::Grid: mean(g * weight), mean(g * weight * x_hat)
  void* grad_x;
  void* grad_residual;
  void* grad_weight;
  void* grad_bias;
  DType param_type;
  A inverse_count;  // of a set's elements, without a mask
  SwitchArguments<A> mix;
};

struct MergeSums {
  bool masked;
  template <class At, class Reduce>
  __device__ __forceinline__ auto operator()(At at, unsigned count, unsigned thread, unsigned threads,
                                             Reduce& reduce) const {
    using A = std::remove_cvref_t<decltype(at(0u).first)>;
    return merge_sums<A>(at, count, thread, threads, masked, reduce);
  }
};

template <class A>
__device__ __forceinline__ void store_parameter_gradients(const PlaneBackwardArguments<A>& a, int64_t channel,
                                                          const Entry<A>& e) {
  if (a.grad_bias != nullptr) store_channel(a.grad_bias, a.param_type, channel, e.first);
  A of_weight = e.second;
  if (a.renorm != Renorm::None) of_weight += load_cached(a.rstd + a.geometry.set_count + channel) * e.first;
  if (a.grad_weight != nullptr) store_channel(a.grad_weight, a.param_type, channel, of_weight);
}

template <class A>
__device__ __forceinline__ void parameter_gradients(const PlaneBackwardArguments<A>& a, Layout layout) {
  const PlaneGeometry& g = a.geometry;
  combine_grid<A>(
      a.table, g.channels, [&](int64_t channel) { return entries_of(g, layout, Sets::Batch, channel); },
      MergeSums{false}, [](const Entry<A>& e, int64_t, unsigned) { return e; },
      [&](int64_t channel, const Entry<A>& e) { store_parameter_gradients(a, channel, e); });
}

template <class A>
__global__ void __launch_bounds__(512)
    plane_parameter_gradients(const PlaneBackwardArguments<A> a, const Layout layout) {
  parameter_gradients(a, layout);
}

template <class T, Layout LAYOUT, Team TEAM>
struct PlaneBackward {
  using A = Accumulator<T>;
  using Arguments = PlaneBackwardArguments<A>;
  static constexpr int N = Packed<T>::size;
  static constexpr bool planes = LAYOUT == Layout::ChannelsFirst;
  static constexpr int count = planes ? 1 : N;

  const Arguments& a;
  const PlaneGeometry& g;
  const PlaneShared<T>& shared;

  __device__ __forceinline__ bool with_residual() const {
    return a.residual != nullptr && a.signs == nullptr && a.activation != Activation::None;
  }
  __device__ __forceinline__ void load(const Slab<T, LAYOUT, TEAM>& slab, int round, int ordinal) const {
    const void* const tensors[2] = {a.x, a.grad_y};
    Packed<T> vectors[2][plane_slots];
#pragma unroll
    for (int tensor = 0; tensor < 2; ++tensor) {
#pragma unroll
      for (int k = 0; k < plane_slots; ++k) {
        const Slot s = slab.slot(round, k);
        vectors[tensor][k] = row_at<T>(tensors[tensor], s, g.aligned).template load<Access::Once>(s.index, s.limit);
      }
    }
#pragma unroll
    for (int tensor = 0; tensor < 2; ++tensor) {
#pragma unroll
      for (int k = 0; k < plane_slots; ++k) shared.kept(g, ordinal, tensor, k) = vectors[tensor][k];
    }
    // A third tensor on its way at the same time would not fit in registers.
    if (with_residual())
      load_round(a.residual, slab, round, [&](int k) -> auto& { return shared.kept(g, ordinal, 2, k); });
  }

  __device__ __forceinline__ Coefficients<A, 1> coefficients(int64_t set, int channel) const {
    Coefficients<A, 1> c = {};
    c.mean[0] = load_cached(a.mean + set);
    c.scale[0] = load_cached(a.rstd + set) * a.weight.at(channel, A(1));
    if (a.activation != Activation::None) {
      c.bias[0] = a.bias.at(channel, A(0));
      if (a.renorm != Renorm::None) c.bias[0] += load_cached(a.rstd + g.set_count + set) * a.weight.at(channel, A(1));
    }
    return c;
  }
  // With what the set's sums make of it. `local_set` counts from `first_set`.
  __device__ __forceinline__ Coefficients<A, 1> gradient_coefficients(int64_t first_set, int local_set,
                                                                      int channel) const {
    Coefficients<A, 1> c = coefficients(first_set + local_set, channel);
    A mean_g, mean_g_x_hat;
    if (TEAM == Team::Cluster) {
      mean_g = shared.sets[local_set].first, mean_g_x_hat = shared.sets[local_set].second;
    } else {
      mean_g = load_written(a.set_means + 2 * int64_t(local_set));
      mean_g_x_hat = load_written(a.set_means + 2 * int64_t(local_set) + 1);
    }
    if (TEAM == Team::Grid && a.mix.terms != 0) {
      c.slope[0] = mean_g, c.offset[0] = mean_g_x_hat;  // switch_backward
      return c;
    }
    const A rstd = load_cached(a.rstd + first_set + local_set);
    c.slope[0] = -rstd * rstd * mean_g_x_hat, c.offset[0] = -rstd * mean_g;
    if (a.renorm != Renorm::None) {
      const A* const of_product = a.rstd + 2 * g.set_count + first_set + local_set;
      c.slope[0] = load_cached(of_product) * mean_g_x_hat + load_cached(of_product + g.set_count) * mean_g;
    }
    return c;
  }

  // x - mean and g of a slot; zero where an element does not count. signs: of the round.
  __device__ __forceinline__ void gradient(int ordinal, int k, unsigned bits, unsigned signs,
                                           const Coefficients<A, count>& c, A (&centered)[N], A (&grad)[N]) const {
    unpack(shared.kept(g, ordinal, 0, k), centered);
    unpack(shared.kept(g, ordinal, 1, k), grad);
#pragma unroll
    for (int j = 0; j < N; ++j) centered[j] -= pick(c.mean, j);
    if (a.signs != nullptr) {
      const bool leaky = a.activation == Activation::LeakyRelu;
#pragma unroll
      for (int j = 0; j < N; ++j)
        if (!(signs >> (8 * k + j) & 1)) grad[j] = leaky ? grad[j] * A(leaky_slope) : A(0);
    } else if (a.activation != Activation::None) {
      A before[N] = {};
      if (with_residual()) unpack(shared.kept(g, ordinal, 2, k), before);
#pragma unroll
      for (int j = 0; j < N; ++j) before[j] += affine(centered[j], pick(c.scale, j), pick(c.bias, j));
      with_activation(a.activation, [&](auto activation) {
#pragma unroll
        for (int j = 0; j < N; ++j) grad[j] *= activation_slope(decltype(activation)::value, before[j]);
      });
    }
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (!(bits >> j & 1)) centered[j] = grad[j] = A(0);
  }

  __device__ __forceinline__ void store_gradients(const Slot& s, unsigned bits, const Coefficients<A, count>& c,
                                                  const A (&centered)[N], const A (&grad)[N]) const {
    const unsigned lanes = g.lanes < 32 ? g.lanes : 32;
    if (a.grad_x != nullptr) {
      A v[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        v[j] = plane_gradient(grad[j], centered[j], pick(c.scale, j), pick(c.slope, j), pick(c.offset, j));
        if (!(bits >> j & 1)) v[j] = A(0);
      }
      row_at<T>(a.grad_x, s, g.aligned).store(s.index, s.limit, v, lanes);
    }
    if (a.grad_residual != nullptr) row_at<T>(a.grad_residual, s, g.aligned).store(s.index, s.limit, grad, lanes);
  }

  // ---- sums of one slab; without batch statistics, its gradients too
  __device__ __forceinline__ void sums(const Slab<T, LAYOUT, TEAM>& slab, int64_t first_set, int first_ordinal) const {
    TileSums<A, planes ? 1 : N> tile;
    Coefficients<A, count> c = {};
    if constexpr (!planes)
      fill_columns<3>(slab, shared,
                      [&](int local) { return coefficients(first_set + slab.set_of(local), slab.channel + local); });
    const bool wanted = TEAM == Team::Cluster || a.table != nullptr;
    for (int round = 0; round < g.rounds; ++round) {
      const int ordinal = first_ordinal + round;
      load(slab, round, ordinal);
      const unsigned signs = a.signs != nullptr ? load_signs(a.signs, slab, round) : 0u;
      if constexpr (!planes) read_columns<3>(slab, shared, c);
      A of_piece[2] = {};      // g, g * (x - mean)
      A counted_ones[1] = {};  // with a mask
#pragma unroll 1
      for (int k = 0; k < plane_slots; ++k) {
        const Slot s = slab.slot(round, k);
        const unsigned bits = counted<N, planes>(s, a.mask);
        if constexpr (planes) {
          if ((k == 0 || g.slots_per_piece == 1) && s.limit > 0) c = coefficients(first_set + s.set, s.channel);
        }
        A centered[N], grad[N];
        gradient(ordinal, k, bits, signs, c, centered, grad);
        if (!a.batch_statistics) store_gradients(s, bits, c, centered, grad);
        if constexpr (planes) {
#pragma unroll
          for (int j = 0; j < N; ++j) of_piece[0] += grad[j], of_piece[1] += grad[j] * centered[j];
          if (a.mask != nullptr) counted_ones[0] += A(__popc(bits));
          if (!wanted || (g.slots_per_piece != 1 && k + 1 < plane_slots)) continue;
          group_sum(of_piece, unsigned(g.lanes));
          if (a.mask != nullptr) group_sum(counted_ones, unsigned(g.lanes));
          const uint32_t piece = slab.piece(round, k);
          if (slab.lane == 0 && piece < slab.end) {
            const Slot first = slab.slot(round, g.slots_per_piece == 1 ? k : 0);
            Entry<A> e{counted_ones[0], of_piece[0], of_piece[1], A(0)};
            if (first.limit > 0) e.second *= load_cached(a.rstd + first_set + first.set);
            if (TEAM == Team::Cluster) shared.entries[piece - slab.first] = e;
            if (a.table != nullptr && first.limit > 0) store_entry(a.table + first.entry, e);
          }
          of_piece[0] = of_piece[1] = counted_ones[0] = A(0);
        } else {
#pragma unroll
          for (int j = 0; j < N; ++j) tile.g[j] += grad[j], tile.g_centered[j] += grad[j] * centered[j];
          tile.count += bits != 0 ? A(1) : A(0);
        }
      }
    }
    if constexpr (!planes) {
      if (!wanted) return;
      finish_tile<T>(slab, tile, shared.tree, [&](int local, Entry<A> e) {
        e.second *= load_cached(a.rstd + first_set + slab.set_of(local));
        if (TEAM == Team::Cluster) shared.entries[local] = e;
        if (a.table != nullptr) store_entry(a.table + slab.entry + local, e);
      });
    }
  }

  // e: a set's sums, weighted if it has several channels; returns the two means that its gradient needs.
  __device__ __forceinline__ Entry<A> finish_set(int64_t set, Entry<A> e, bool write) const {
    if (write && g.sets == Sets::Batch) store_parameter_gradients(a, set, e);
    const A inverse = a.mask == nullptr ? a.inverse_count : e.count > A(0) ? quotient(A(1), e.count) : A(0);
    const A scale = inverse * (g.width == 1 ? a.weight.at(uint32_t(set) % uint32_t(g.channels), A(1)) : A(1));
    e.first *= scale, e.second *= scale;
    return e;
  }

  __device__ __forceinline__ void apply(const Slab<T, LAYOUT, TEAM>& slab, int64_t first_set, int first_ordinal) const {
    Coefficients<A, count> c = {};
    if constexpr (!planes)
      fill_columns<column_values>(slab, shared, [&](int local) {
        return gradient_coefficients(first_set, slab.set_of(local), slab.channel + local);
      });
    for (int round = g.rounds - 1; round >= 0; --round) {
      const int ordinal = first_ordinal + round;
      if (ordinal >= g.kept_rounds) load(slab, round, ordinal);
      const unsigned signs = a.signs != nullptr ? load_signs(a.signs, slab, round) : 0u;
      if constexpr (!planes) read_columns<column_values>(slab, shared, c);
#pragma unroll 1
      for (int k = 0; k < plane_slots; ++k) {
        const Slot s = slab.slot(round, k);
        if constexpr (planes) {
          if ((k == 0 || g.slots_per_piece == 1) && s.limit > 0) c = gradient_coefficients(first_set, s.set, s.channel);
        }
        const unsigned bits = counted<N, planes>(s, a.mask);
        A centered[N], grad[N];
        gradient(ordinal, k, bits, signs, c, centered, grad);
        store_gradients(s, bits, c, centered, grad);
      }
    }
  }
};

template <class T, Layout LAYOUT, Team TEAM>
__global__ void __launch_bounds__(TEAM == Team::Cluster ? cluster_team_threads : grid_team_threads(2),
                                  TEAM == Team::Cluster ? 2 : 1)
    plane_backward(const PlaneBackwardArguments<Accumulator<T>> a) {
  using A = Accumulator<T>;
  DYNAMIC_SHARED(unsigned char, dynamic);
  const PlaneGeometry& g = a.geometry;
  const PlaneShared<T> shared(g, dynamic, TEAM == Team::Cluster);
  const PlaneBackward<T, LAYOUT, TEAM> backward{a, g, shared};
  const bool weigh = g.width > 1 && a.weight.data != nullptr;
  const auto weighted = [&](Entry<A> e, int64_t channel) {
    const A weight = a.weight.at(channel, A(1));
    e.first *= weight, e.second *= weight;
    return e;
  };

  if constexpr (TEAM == Team::Cluster) {
    const unsigned blocks = Cluster::blocks();
    if (blocks > 1) Cluster::sync();  // no block writes to a peer before it has started
    for (int64_t task = blockIdx.x / blocks; task < g.tasks; task += gridDim.x / blocks) {
      const Slab<T, LAYOUT, TEAM> slab(g, task, Cluster::rank());
      const int64_t first_set = slab.first_set(task);
      const unsigned sets = unsigned(slab.sets(task)), first_entry = g.sets_per_task == 1 ? slab.first_entry() : 0;
      backward.sums(slab, first_set, 0);
      combine_cluster<T>(g, LAYOUT, shared, slab.entries(), sets, MergeSums{a.mask != nullptr},
                         [&](const Entry<A>& e, int64_t set, unsigned i) {
                           return weigh ? weighted(e, slab.channel_of(first_set + set, i, first_entry)) : e;
                         });
      for (unsigned set = threadIdx.x; set < sets; set += blockDim.x)
        shared.sets[set] = backward.finish_set(first_set + set, shared.sets[set], Cluster::rank() == 0);
      __syncthreads();
      backward.apply(slab, first_set, 0);
      // The next task writes what this one reads, and a block must not end while a peer writes to it.
      if (blocks > 1) {
        Cluster::sync();
      } else {
        __syncthreads();
      }
    }
  } else {
    const int64_t mine = (unsigned(g.slabs) - blockIdx.x + gridDim.x - 1) / gridDim.x;
    for (int64_t i = 0; i < mine; ++i)
      backward.sums(Slab<T, LAYOUT, TEAM>(g, 0, blockIdx.x + i * gridDim.x), 0, int(i * g.rounds));
    if (a.table == nullptr) return;
    cooperative_groups::this_grid().sync();
    if (g.sets != Sets::Batch || !a.batch_statistics) parameter_gradients(a, LAYOUT);
    if (!a.batch_statistics) return;
    const Slab<T, LAYOUT, TEAM> anywhere(g, 0, 0);
    combine_grid<A>(
        a.table, g.set_count, [&](int64_t set) { return entries_of(g, LAYOUT, g.sets, set); },
        MergeSums{a.mask != nullptr},
        [&](const Entry<A>& e, int64_t set, unsigned i) {
          return weigh ? weighted(e, anywhere.channel_of(set, LAYOUT == Layout::ChannelsFirst ? i : i % g.width, 0))
                       : e;
        },
        [&](int64_t set, const Entry<A>& e) {
          const Entry<A> done = backward.finish_set(set, e, true);
          if (a.mix.terms != 0) return store_gradients(a, set, done);
          store(a.set_means + 2 * set, done.first);
          store(a.set_means + 2 * set + 1, done.second);
        });
    cooperative_groups::this_grid().sync();
    if (a.mix.terms != 0) switch_backward<A>(a, MergeSums{false});
    for (int64_t i = mine - 1; i >= 0; --i)
      backward.apply(Slab<T, LAYOUT, TEAM>(g, 0, blockIdx.x + i * gridDim.x), 0, int(i * g.rounds));
  }
}

}  // namespace torchfastnorm::cuda
