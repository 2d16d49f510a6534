// csrc/cuda/common/reduce.cuh against plain loops: every group of lanes, blocks of 1 to 32 warps, clusters of 1 to 16
// blocks, one and two values at once, three sums in a row (the scratch is used by turns, so the third meets the
// first's). Sums of small integers must be exact; sums of random numbers must have the same bits on every thread and
// under every order.
//   test_reduce [few]      few: a thinned set, for ThreadSanitizer
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/common/reduce.cuh"

using namespace torchfastnorm::cuda;

namespace {

constexpr int kRounds = 3;

// Every thread adds its K values of each round and writes the sums that it gets: y[thread][round][k].
template <class A, int K>
__global__ void sum_over_group(const A* x, A* y, unsigned lanes) {
  for (int round = 0; round < kRounds; round++) {
    A values[K];
    const unsigned at = (threadIdx.x * kRounds + unsigned(round)) * K;
    for (int k = 0; k < K; k++) values[k] = x[at + k];
    group_sum(values, lanes);
    for (int k = 0; k < K; k++) y[at + k] = values[k];
  }
}

template <class A, int K>
__global__ void sum_over_block(const A* x, A* y) {
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  ClusterSum<A> sum(scratch, inbox);
  for (int round = 0; round < kRounds; round++) {
    A values[K];
    const unsigned at = ((blockIdx.x * blockDim.x + threadIdx.x) * kRounds + unsigned(round)) * K;
    for (int k = 0; k < K; k++) values[k] = x[at + k];
    sum(values);
    for (int k = 0; k < K; k++) y[at + k] = values[k];
  }
}

template <class A, int K>
__global__ void sum_over_cluster(const A* x, A* y) {
  SHARED(A, scratch, [2][max_warps][max_sums]);
  SHARED(A, inbox, [2][max_cluster_blocks][max_sums]);
  ClusterSum<A> sum(scratch, inbox);
  for (int round = 0; round < kRounds; round++) {
    A values[K];
    const unsigned at = ((blockIdx.x * blockDim.x + threadIdx.x) * kRounds + unsigned(round)) * K;
    for (int k = 0; k < K; k++) values[k] = x[at + k];
    sum(values);
    for (int k = 0; k < K; k++) y[at + k] = values[k];
  }
}

enum class Data { integers, random };

template <class A>
std::vector<A> make(size_t size, Data data) {
  static std::mt19937 bits(1);
  std::vector<A> x(size);
  std::uniform_real_distribution<A> real(-1, 1);
  for (A& v : x) v = data == Data::integers ? A(int(bits() % 64) - 32) : real(bits);
  return x;
}

// x and y hold [groups][threads][kRounds][K]; all threads of a group must have the sum over the group.
template <class A, int K>
void check_sums(const std::vector<A>& x, const std::vector<A>& y, size_t groups, size_t threads, Data data,
                const std::string& what) {
  for (size_t group = 0; group < groups; group++)
    for (size_t i = 0; i < kRounds * K; i++) {
      const A* const xs = x.data() + group * threads * kRounds * K + i;
      const A* const ys = y.data() + group * threads * kRounds * K + i;
      double sum = 0, size = 0;
      bool alike = true;
      for (size_t thread = 0; thread < threads; thread++) {
        sum += double(xs[thread * kRounds * K]);
        size += std::abs(double(xs[thread * kRounds * K]));
        alike &= std::memcmp(&ys[thread * kRounds * K], &ys[0], sizeof(A)) == 0;
      }
      CHECK(alike) << what << ", group " << group << ", round and value " << i;
      // A tree of depth log2(threads) errs by at most that many roundings of the sum of magnitudes.
      const double bound = data == Data::integers
                               ? 0
                               : std::log2(double(threads) + 1) * double(std::numeric_limits<A>::epsilon()) * size;
      CHECK(std::abs(double(ys[0]) - sum) <= bound) << what << ", group " << group << ": " << ys[0] << " not " << sum;
    }
}

template <class A, int K, class Kernel, class... More>
void test(Kernel kernel, const LaunchConfig& config, size_t groups, const std::string& what, More... more) {
  const size_t threads = size_t(config.grid.x) * config.block.x;
  for (Data data : {Data::integers, Data::random}) {
    const std::vector<A> x = make<A>(threads * kRounds * K, data);
    std::vector<A> first;
    for (auto order : {cudasim::Order::forward, cudasim::Order::reverse, cudasim::Order::random}) {
      cudasim::options().order = order;
      std::vector<A> y(x.size(), std::numeric_limits<A>::quiet_NaN());
      launch(kernel, config, nullptr, x.data(), y.data(), more...);
      if (first.empty()) {
        check_sums<A, K>(x, y, groups, threads / groups, data, what);
        first = y;
      }
      CHECK(std::memcmp(first.data(), y.data(), y.size() * sizeof(A)) == 0) << what << ", another order";
    }
  }
}

template <class A, int K>
void test_all(bool few) {
  const std::string type = ", " + std::to_string(sizeof(A)) + " bytes, " + std::to_string(K) + " at once";
  for (unsigned lanes : {1, 2, 4, 8, 16, 32})
    test<A, K>(sum_over_group<A, K>, {.grid = 1, .block = 64, .name = "group"}, 64 / lanes,
               std::to_string(lanes) + " lanes" + type, lanes);
  for (unsigned warps : few ? std::vector<unsigned>{1, 3} : std::vector<unsigned>{1, 2, 3, 5, 8, 16, 31, 32})
    test<A, K>(sum_over_block<A, K>, {.grid = 2, .block = 32 * warps, .name = "block"}, 2,
               std::to_string(warps) + " warps" + type);
  for (unsigned blocks : few ? std::vector<unsigned>{1, 3} : std::vector<unsigned>{1, 2, 3, 8, 16})
    for (unsigned warps : {1, 3})
      test<A, K>(sum_over_cluster<A, K>,
                 {.grid = 2 * blocks, .block = 32 * warps, .cluster = blocks, .name = "cluster"}, 2,
                 std::to_string(blocks) + " blocks of " + std::to_string(warps) + " warps" + type);
}

}  // namespace

int main(int count, char** arguments) {
  const bool few = count > 1 && std::string(arguments[1]) == "few";
  test_all<float, 1>(few);
  test_all<float, 2>(few);
  test_all<double, 1>(few);
  test_all<double, 2>(few);
  return Check::report();
}
