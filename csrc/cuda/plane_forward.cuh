// Forward of the norms of feature maps: moments, combine, apply in one launch (plane_norm.cuh, plane_combine.cuh).
//
//   Team::Cluster   x read once, y written once; a residual is read by apply, which leaves signs of its sum
//   Team::Grid      x read again where no block had room to keep it; without batch statistics apply alone: one pass
//
// A piece's moments: its mean, then squares around it, in registers; the sum of the deviations, zero but for the
// rounding of the mean, corrects both, and where that is not small beside the squares (a constant plane) they are taken
// again around the corrected mean, so that a constant plane has variance zero at any magnitude.
#pragma once
#include "plane_combine.cuh"
#include "switch_norm.cuh"

namespace torchfastnorm::cuda {

template <class A>
struct PlaneForwardArguments : PlaneArguments<A> {
  void* y;
  uint8_t* signs;  // null: not wanted
  A* mean;         // (sets); null: not wanted (Team::Cluster)
  A* rstd;         // (sets); null: not wanted (Team::Cluster)
  A* variance;     // (sets), Sets::Instance with running statistics; else null
  void* running_mean;
  void* running_var;
  DType running_type;
  int64_t* batches;
  A eps, momentum;  // momentum negative: cumulative average
  RenormBoundsOf<A> bounds;
  SwitchArguments<A> mix;
};

// Sums over what shares a piece, for the pieces of all slots at once. `joint`: all slots are one piece's.
template <class A>
__device__ __forceinline__ void sum_pieces(A (&values)[plane_slots], bool joint, unsigned lanes) {
  if (joint) {
    A one[1] = {(values[0] + values[1]) + (values[2] + values[3])};
    group_sum(one, lanes);
#pragma unroll
    for (int k = 0; k < plane_slots; ++k) values[k] = one[0];
  } else {
    group_sum(values, lanes);
  }
}

// Moments of the pieces that the slots belong to, whose elements are `size`; with a mask, those of `bits` count.
// count: those that count, of the piece.
template <class T>
__device__ __forceinline__ void piece_moments(const Packed<T> (&x)[plane_slots], const unsigned (&bits)[plane_slots],
                                              const int (&size)[plane_slots], bool masked, bool joint, unsigned lanes,
                                              Accumulator<T> (&count)[plane_slots], Accumulator<T> (&mean)[plane_slots],
                                              Accumulator<T> (&squares)[plane_slots]) {
  using A = Accumulator<T>;
  constexpr int N = Packed<T>::size;
  A deviation[plane_slots];
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) {
    A v[N];
    unpack(x[k], v);
    mean[k] = A(0);
#pragma unroll
    for (int j = 0; j < N; ++j) mean[k] += v[j];
    count[k] = A(masked ? __popc(bits[k]) : size[k]);
  }
  sum_pieces(mean, joint, lanes);
  if (masked) sum_pieces(count, joint, lanes);
  A inverse[plane_slots];
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) {
    inverse[k] = count[k] > A(0) ? quotient(A(1), count[k]) : A(0);
    mean[k] *= inverse[k];
  }
  const auto measure = [&] {
#pragma unroll
    for (int k = 0; k < plane_slots; ++k) {
      A v[N];
      unpack(x[k], v);
      squares[k] = deviation[k] = A(0);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const A d = bits[k] >> j & 1 ? v[j] - mean[k] : A(0);
        squares[k] += d * d;
        deviation[k] += d;
      }
    }
    sum_pieces(squares, joint, lanes);
    sum_pieces(deviation, joint, lanes);
  };
  measure();
  bool again = false;
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) again |= deviation[k] * (deviation[k] * inverse[k]) > squares[k] * A(0.25);
  if (__any_sync(0xffffffffu, again)) {
    A before_mean[plane_slots], before_squares[plane_slots], before_deviation[plane_slots];
#pragma unroll
    for (int k = 0; k < plane_slots; ++k) {
      before_mean[k] = mean[k], before_squares[k] = squares[k], before_deviation[k] = deviation[k];
      mean[k] += deviation[k] * inverse[k];
    }
    measure();
#pragma unroll
    for (int k = 0; k < plane_slots; ++k) {
      // A piece's result must not depend on its neighbours in the warp.
      if (before_deviation[k] * (before_deviation[k] * inverse[k]) > before_squares[k] * A(0.25)) {
        deviation[k] = A(0);
      } else {
        mean[k] = before_mean[k], squares[k] = before_squares[k], deviation[k] = before_deviation[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < plane_slots; ++k) {
    const A shift = deviation[k] * inverse[k];
    squares[k] -= deviation[k] * shift;
    mean[k] += shift;
  }
}

template <class T, Layout LAYOUT, Team TEAM>
struct PlaneForward {
  using A = Accumulator<T>;
  using Arguments = PlaneForwardArguments<A>;
  static constexpr int N = Packed<T>::size;
  static constexpr bool planes = LAYOUT == Layout::ChannelsFirst;
  static constexpr int count = planes ? 1 : N;  // coefficients of a vector

  const Arguments& a;
  const PlaneGeometry& g;
  const PlaneShared<T>& shared;

  // ---- moments of one slab
  __device__ __forceinline__ void moments(const Slab<T, LAYOUT, TEAM>& slab, int first_ordinal) const {
    TileMoments<A, planes ? 1 : N> tile;
    for (int round = 0; round < g.rounds; ++round) {
      Packed<T> x[plane_slots];
      unsigned bits[plane_slots];
      int size[plane_slots];
#pragma unroll
      for (int k = 0; k < plane_slots; ++k) {
        const Slot s = slab.slot(round, k);
        x[k] = row_at<T>(a.x, s, g.aligned).template load<Access::Once>(s.index, s.limit);
      }
#pragma unroll
      for (int k = 0; k < plane_slots; ++k) {
        const Slot s = slab.slot(round, k);
        bits[k] = counted<N, planes>(s, a.mask);
        size[k] = s.limit;
        if (a.mask != nullptr) drop_uncounted(x[k], bits[k]);
        shared.kept(g, first_ordinal + round, 0, k) = x[k];
      }
      if constexpr (planes) {
        A counts[plane_slots], mean[plane_slots], squares[plane_slots];
        const bool joint = g.slots_per_piece != 1;
        piece_moments(x, bits, size, a.mask != nullptr, joint, unsigned(g.lanes), counts, mean, squares);
#pragma unroll
        for (int k = 0; k < plane_slots; ++k) {
          const uint32_t piece = slab.piece(round, k);
          if (slab.lane != 0 || (joint && k > 0) || piece >= slab.end) continue;
          if (TEAM == Team::Cluster) shared.entries[piece - slab.first] = {counts[k], mean[k], squares[k], A(0)};
          if (TEAM == Team::Grid) store_entry(a.table + piece, {counts[k], mean[k], squares[k], A(0)});
        }
      } else {
        tile.add(x, bits);
      }
    }
    if constexpr (!planes) {
      finish_tile<T>(slab, tile, shared.tree, [&](int local, const Entry<A>& e) {
        if (TEAM == Team::Cluster) shared.entries[local] = e;
        if (TEAM == Team::Grid) store_entry(a.table + slab.entry + local, e);
      });
    }
  }

  // ---- what a set ends with

  __device__ __forceinline__ A factor() const {
    return a.momentum >= A(0) ? a.momentum : quotient(A(1), A(load_written(a.batches) + 1));
  }
  __device__ __forceinline__ RenormLimits<A> limits() const {
    if (a.batches == nullptr) return {a.bounds.r_max, a.bounds.d_max};
    return limits_at(A(load_written(a.batches)), a.bounds);
  }
  __device__ __forceinline__ void raise_batches() const {
    if (a.batches != nullptr && a.renorm == Renorm::None && blockIdx.x == 0 && threadIdx.x == 0)
      store(a.batches, load_written(a.batches) + 1);
  }
  // Does a set's end move the running statistics? (Those of instances average over the samples first.)
  __device__ __forceinline__ bool moves() const { return a.running_mean != nullptr && g.sets == Sets::Batch; }
  __device__ __forceinline__ Running<A> running(int64_t channel) const {
    const ChannelValues mean{a.running_mean, a.running_type}, variance{a.running_var, a.running_type};
    return {mean.at(channel, A(0)), variance.at(channel, A(1))};
  }
  __device__ __forceinline__ void update(int64_t channel, Running<A> before, A mean, A variance) const {
    const A f = factor(), rest = A(1) - f;
    store_channel(a.running_mean, a.running_type, channel, rest * before.mean + f * mean);
    store_channel(a.running_var, a.running_type, channel, rest * before.var + f * variance);
  }
  // e: the set's moments; returns them with rstd in second place. before: of Sets::Batch, if they are wanted.
  __device__ __forceinline__ Entry<A> finish_set(int64_t set, Running<A> before, Entry<A> e, bool write) const {
    const A inverse = e.count > A(0) ? quotient(A(1), e.count) : A(0), var = e.second * inverse;
    const A unbiased = quotient(e.second, e.count > A(1) ? e.count - A(1) : A(1));
    Renormed<A> n{inverse_sqrt(var + a.eps)};
    A target = unbiased;
    if (a.renorm != Renorm::None) {
      const A bessel = e.count > A(1) ? quotient(e.count, e.count - A(1)) : A(1);
      n = renormed(a.renorm, e.first, var, bessel, before, a.eps, limits());
      target = running_target(a.renorm, var, unbiased, A(g.samples), a.eps);
    }
    if (write) {
      if (a.mean != nullptr) store(a.mean + set, e.first);
      if (a.rstd != nullptr) store(a.rstd + set, n.scale);
      if (a.rstd != nullptr && a.renorm != Renorm::None) {
        const A rest[renormed_values - 1] = {n.shift, n.of_product, n.of_sum, n.r, n.d};
#pragma unroll
        for (int i = 0; i < renormed_values - 1; ++i) store(a.rstd + (i + 1) * g.set_count + set, rest[i]);
      }
      if (a.variance != nullptr) store(a.variance + set, unbiased);
      if (moves() && !g.empty) update(set, before, e.first, target);
    }
    e.second = n.scale, e.shift = n.shift;
    return e;
  }

  // ---- apply

  __device__ __forceinline__ Coefficients<A, 1> coefficients(int set, int channel) const {
    Coefficients<A, 1> c = {};
    A rstd, shift = A(0);
    if (!a.batch_statistics) {
      const Running<A> statistics = running(channel);
      c.mean[0] = statistics.mean, rstd = running_rstd(a.renorm, statistics.var, a.eps);
    } else if (TEAM == Team::Cluster) {
      c.mean[0] = shared.sets[set].first, rstd = shared.sets[set].second, shift = shared.sets[set].shift;
    } else {
      c.mean[0] = load_written(a.mean + set), rstd = load_written(a.rstd + set);
      if (a.renorm != Renorm::None) shift = load_written(a.rstd + g.set_count + set);
    }
    const A weight = a.weight.at(channel, A(1));
    c.scale[0] = rstd * weight, c.bias[0] = a.bias.at(channel, A(0)) + shift * weight;
    return c;
  }

  __device__ __forceinline__ void apply(const Slab<T, LAYOUT, TEAM>& slab, int first_ordinal) const {
    Coefficients<A, count> c = {};
    if constexpr (!planes)
      fill_columns<3>(slab, shared, [&](int local) { return coefficients(slab.set_of(local), slab.channel + local); });
    for (int round = g.rounds - 1; round >= 0; --round) {
      const int ordinal = first_ordinal + round;
      if (ordinal >= g.kept_rounds)
        load_round(a.x, slab, round, [&](int k) -> auto& { return shared.kept(g, ordinal, 0, k); });
      if (a.residual != nullptr) load_round(a.residual, slab, round, [&](int k) -> auto& { return shared.stage(k); });
      if constexpr (!planes) read_columns<3>(slab, shared, c);
#pragma unroll 1
      for (int k = 0; k < plane_slots; ++k) {
        const Slot s = slab.slot(round, k);
        if constexpr (planes) {
          if ((k == 0 || g.slots_per_piece == 1) && s.limit > 0) c = coefficients(s.set, s.channel);
        }
        A v[N];
        unpack(shared.kept(g, ordinal, 0, k), v);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] = affine(v[j] - pick(c.mean, j), pick(c.scale, j), pick(c.bias, j));
        if (a.residual != nullptr) {
          A more[N];
          unpack(shared.stage(k), more);
#pragma unroll
          for (int j = 0; j < N; ++j) v[j] += more[j];
        }
        with_activation(a.activation, [&](auto activation) {
#pragma unroll
          for (int j = 0; j < N; ++j) v[j] = activate(decltype(activation)::value, v[j]);
        });
        if (a.signs != nullptr) store_signs(a.signs, s, v);
        if (a.mask != nullptr) {
          const unsigned bits = counted<N, planes>(s, a.mask);
#pragma unroll
          for (int j = 0; j < N; ++j)
            if (!(bits >> j & 1)) v[j] = A(0);
        }
        row_at<T>(a.y, s, g.aligned).store(s.index, s.limit, v, g.lanes < 32 ? g.lanes : 32);
      }
    }
  }
};

struct MergeMoments {
  template <class At, class Reduce>
  __device__ __forceinline__ auto operator()(At at, unsigned count, unsigned thread, unsigned threads,
                                             Reduce& reduce) const {
    using A = std::remove_cvref_t<decltype(at(0u).first)>;
    return merge_moments<A>(at, count, thread, threads, reduce);
  }
};

template <class T, Layout LAYOUT, Team TEAM>
__global__ void __launch_bounds__(TEAM == Team::Cluster ? cluster_team_threads : grid_team_threads(1),
                                  TEAM == Team::Cluster ? 2 : 1)
    plane_forward(const PlaneForwardArguments<Accumulator<T>> a) {
  using A = Accumulator<T>;
  DYNAMIC_SHARED(unsigned char, dynamic);
  const PlaneGeometry& g = a.geometry;
  const PlaneShared<T> shared(g, dynamic, TEAM == Team::Cluster);
  const PlaneForward<T, LAYOUT, TEAM> forward{a, g, shared};
  const auto as_is = [](const Entry<A>& e, int64_t, unsigned) { return e; };

  if constexpr (TEAM == Team::Cluster) {
    const unsigned blocks = Cluster::blocks();
    if (blocks > 1) Cluster::sync();  // no block writes to a peer before it has started
    for (int64_t task = blockIdx.x / blocks; task < g.tasks; task += gridDim.x / blocks) {
      const Slab<T, LAYOUT, TEAM> slab(g, task, Cluster::rank());
      forward.moments(slab, 0);
      const unsigned sets = unsigned(slab.sets(task));
      // Read by every block of a cluster before combine_cluster's barrier, written by the first one after it. (A task
      // of several blocks has fewer sets than a block has threads.)
      Running<A> before{};
      if (forward.moves() && threadIdx.x < sets) before = forward.running(slab.first_set(task) + threadIdx.x);
      combine_cluster<T>(g, LAYOUT, shared, slab.entries(), sets, MergeMoments(), as_is);
      for (unsigned set = threadIdx.x; set < sets; set += blockDim.x) {
        if (forward.moves() && set != threadIdx.x) before = forward.running(slab.first_set(task) + set);
        shared.sets[set] =
            forward.finish_set(slab.first_set(task) + set, before, shared.sets[set], Cluster::rank() == 0);
      }
      __syncthreads();
      forward.apply(slab, 0);
      // The next task writes what this one reads, and a block must not end while a peer writes to it.
      if (blocks > 1) {
        Cluster::sync();
      } else {
        __syncthreads();
      }
    }
    forward.raise_batches();
  } else {
    const int64_t mine = (unsigned(g.slabs) - blockIdx.x + gridDim.x - 1) / gridDim.x;
    if (a.batch_statistics) {
      for (int64_t i = 0; i < mine; ++i)
        forward.moments(Slab<T, LAYOUT, TEAM>(g, 0, blockIdx.x + i * gridDim.x), int(i * g.rounds));
      cooperative_groups::this_grid().sync();
      const auto range = [&](int64_t set) { return entries_of(g, LAYOUT, g.sets, set); };
      combine_grid<A>(a.table, g.set_count, range, MergeMoments(), as_is, [&](int64_t set, const Entry<A>& e) {
        if (a.mix.terms != 0) return store_moments(a, set, e);
        forward.finish_set(set, forward.moves() ? forward.running(set) : Running<A>{}, e, true);
      });
      cooperative_groups::this_grid().sync();
      if (a.mix.terms != 0) switch_forward<A>(a, MergeMoments());
      if (a.variance != nullptr && !g.empty) {  // running statistics average over the samples
        for (unsigned c = blockIdx.x * blockDim.x + threadIdx.x; c < unsigned(g.channels);
             c += gridDim.x * blockDim.x) {
          A mean = A(0), variance = A(0);
          for (int64_t n = 0; n < g.samples; ++n) {
            mean += load_written(a.mean + n * g.channels + c);
            variance += load_written(a.variance + n * g.channels + c);
          }
          forward.update(c, forward.running(c), quotient(mean, A(g.samples)), quotient(variance, A(g.samples)));
        }
        // A cumulative average: every block has read `batches` before it is raised.
        if (a.momentum < A(0)) cooperative_groups::this_grid().sync();
      }
      forward.raise_batches();
    } else if (a.mean != nullptr) {
      for (unsigned c = blockIdx.x * blockDim.x + threadIdx.x; c < unsigned(g.channels); c += gridDim.x * blockDim.x) {
        const Running<A> statistics = forward.running(c);
        store(a.mean + c, statistics.mean);
        store(a.rstd + c, running_rstd(a.renorm, statistics.var, a.eps));
      }
    }
    for (int64_t i = mine - 1; i >= 0; --i)
      forward.apply(Slab<T, LAYOUT, TEAM>(g, 0, blockIdx.x + i * gridDim.x), int(i * g.rounds));
  }
}

}  // namespace torchfastnorm::cuda
