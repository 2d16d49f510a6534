// Sums over a group of lanes, a block and a cluster, in an order fixed by the number of threads alone.
//
//   group_sum     all lanes of each group of `lanes` (a power of two) call; every lane has the result
//   BlockSum      all threads of the block call; every thread has the result
//   ClusterSum    all threads of the cluster (or of the block, where there is none) call; every thread has the result
//
// Each reduces K values at once: one exchange, whatever K. The scratch is used in two halves by turns, so one barrier
// per sum is enough: a thread that writes a half again has passed the barrier of the sum between, which every thread
// reaches only after it has read that half.
#pragma once
#include "port.h"

namespace torchfastnorm::cuda {

constexpr int max_warps = 32;
constexpr int max_cluster_blocks = 16;
constexpr int max_sums = 2;

template <int K, class A>
__device__ __forceinline__ void group_sum(A (&values)[K], unsigned lanes) {
  for (unsigned offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], offset);
  }
}

template <class A>
struct BlockSum {
  A (*scratch)[max_warps][max_sums];  // two halves, in shared memory
  unsigned turn = 0;

  template <int K>
  __device__ __forceinline__ void operator()(A (&values)[K]) {
    static_assert(K <= max_sums);
    group_sum(values, 32);
    const unsigned warps = blockDim.x / 32;
    if (warps == 1) return;
    auto& half = scratch[turn];
    turn ^= 1;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) half[threadIdx.x / 32][k] = values[k];
    }
    __syncthreads();
    // Every warp adds up the slots by itself: no second barrier to hand the result out.
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = lane < warps ? half[lane][k] : A(0);
    group_sum(values, 32);
  }
};

template <class A>
struct ClusterSum {
  BlockSum<A> block_sum;
  A (*inbox)[max_cluster_blocks][max_sums];  // two halves, in shared memory; written by the other blocks
  unsigned turn = 0;

  // No block may write to a peer before all have started: this waits for them. None ends while a peer can still
  // write to it: the sync() of the last sum comes after every write.
  __device__ __forceinline__ ClusterSum(A (*scratch)[max_warps][max_sums], A (*inbox)[max_cluster_blocks][max_sums])
      : block_sum{scratch}, inbox(inbox) {
    if (Cluster::blocks() > 1) Cluster::sync();
  }

  template <int K>
  __device__ __forceinline__ void operator()(A (&values)[K]) {
    block_sum(values);
    const unsigned blocks = Cluster::blocks();
    if (blocks == 1) return;
    auto& half = inbox[turn];
    turn ^= 1;
    if (threadIdx.x < blocks) {
      A* slot = Cluster::map_shared(&half[Cluster::rank()][0], threadIdx.x);
#pragma unroll
      for (int k = 0; k < K; ++k) slot[k] = values[k];
    }
    Cluster::sync();
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = A(0);
    for (unsigned rank = 0; rank < blocks; ++rank) {
#pragma unroll
      for (int k = 0; k < K; ++k) values[k] += half[rank][k];
    }
  }
};

}  // namespace torchfastnorm::cuda
