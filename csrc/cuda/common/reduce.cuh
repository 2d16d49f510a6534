// Sums over a group of lanes, a block and a cluster, in an order fixed by the number of threads alone.
//
//   group_sum     all lanes of each group of `lanes` (a power of two) call; every lane has the result
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
struct ClusterSum {
  A (*scratch)[max_warps][max_sums];         // two halves, in shared memory
  A (*inbox)[max_cluster_blocks][max_sums];  // two halves, in shared memory; written by the other blocks
  unsigned turn = 0;

  // No block may write to a peer before all have started: this waits for them. None ends while a peer can still
  // write to it: the sync() of the last sum comes after every write.
  __device__ __forceinline__ ClusterSum(A (*scratch)[max_warps][max_sums], A (*inbox)[max_cluster_blocks][max_sums])
      : scratch(scratch), inbox(inbox) {
    if (Cluster::blocks() > 1) Cluster::sync();
  }

  template <int K>
  __device__ __forceinline__ void operator()(A (&values)[K]) {
    static_assert(K <= max_sums);
    group_sum(values, 32);
    if (blockDim.x > 32) sum_of_warps(values, scratch[turn]);
    if (Cluster::blocks() > 1) sum_of_blocks(values, inbox[turn]);
    turn ^= 1;
  }

 private:
  // Every warp adds up the warps' sums by itself: no second barrier to hand the result out.
  template <int K>
  static __device__ __forceinline__ void sum_of_warps(A (&values)[K], A (&half)[max_warps][max_sums]) {
    const unsigned lane = threadIdx.x % 32;
    if (lane == 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) half[threadIdx.x / 32][k] = values[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = lane < blockDim.x / 32 ? half[lane][k] : A(0);
    group_sum(values, 32);
  }

  template <int K>
  static __device__ __forceinline__ void sum_of_blocks(A (&values)[K], A (&half)[max_cluster_blocks][max_sums]) {
    const unsigned blocks = Cluster::blocks();
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
