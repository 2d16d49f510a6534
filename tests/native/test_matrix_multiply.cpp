// csrc/cuda/common/matrix_multiply.cuh against plain loops: tiles of a warp, operands along and across k, all lengths
// of k. Integers must be exact; random floats must be within 2^-21 of the products' magnitudes, that is two operands
// cut in two parts of tf32 and sums of 8 rounded towards zero; NaN must reach its row and column and nothing else.
//   test_matrix_multiply [few]      few: one order of threads
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/common/matrix_multiply.cuh"

using namespace torchfastnorm::cuda;

namespace {

constexpr int kLength = 32;

template <class A, int M, int N, Operand OPERAND_A, Operand OPERAND_B>
__global__ void multiply(const A* a, const A* b, A* y, int steps, int stride) {
  constexpr int pitch_a = pitch_of<A>(OPERAND_A, kLength), pitch_b = pitch_of<A>(OPERAND_B, kLength);
  SHARED(A, shared_a, [kLength * pitch_a]);
  SHARED(A, shared_b, [kLength * pitch_b]);
  for (int i = int(threadIdx.x); i < kLength * kLength; i += 32) {
    const int row = i / kLength, k = i % kLength;
    shared_a[OPERAND_A == Operand::Along ? row * pitch_a + k : k * pitch_a + row] = a[i];
    shared_b[OPERAND_B == Operand::Along ? row * pitch_b + k : k * pitch_b + row] = b[i];
  }
  __syncthreads();
  A c[M][N][4] = {};
  for (int first = 0; first < stride; ++first)
    multiply_shared<OPERAND_A, OPERAND_B, pitch_a, pitch_b>(c, shared_a, shared_b, first, steps, stride);
  for_each_pair(c, [&](int row, int col, A left, A right) {
    y[row * 8 * N + col] = left;
    y[row * 8 * N + col + 1] = right;
  });
}

enum class Data { integers, random, nan };

template <class A, int M, int N, Operand OPERAND_A, Operand OPERAND_B>
void test_product(int steps, int stride, Data data) {
  std::mt19937 bits(unsigned(steps) + 7);
  std::normal_distribution<double> normal(0.3, 1);
  std::vector<A> a(kLength * kLength), b(a), y(16 * M * 8 * N, A(-1));
  for (auto* values : {&a, &b})
    for (A& v : *values) v = data == Data::integers ? A(int(bits() % 2001) - 1000) : A(normal(bits));
  if (data == Data::nan) a[5 * kLength + 2] = A(NAN), b[3 * kLength + 1] = A(NAN);
  const LaunchConfig config{.grid = 1, .block = 32, .name = "multiply"};
  launch(multiply<A, M, N, OPERAND_A, OPERAND_B>, config, nullptr, a.data(), b.data(), y.data(), steps, stride);
  for (int row = 0; row < 16 * M; ++row)
    for (int col = 0; col < 8 * N; ++col) {
      double sum = 0, size = 0;
      for (int k = 0; k < 8 * steps; ++k) {
        const double product = double(a[size_t(row * kLength + k)]) * double(b[size_t(col * kLength + k)]);
        sum += product, size += std::abs(product);
      }
      const double ours = double(y[size_t(row * 8 * N + col)]);
      if (data == Data::nan && (row == 5 || col == 3)) {
        CHECK(std::isnan(ours)) << "row " << row << ", column " << col << ": " << ours;
        continue;
      }
      const double bound = data == Data::integers ? 0 : size * (sizeof(A) == 4 ? 0x1p-21 : 0x1p-49);
      CHECK(std::abs(ours - sum) <= bound) << M << " x " << N << ", " << steps << " steps, bytes " << sizeof(A)
                                           << ", row " << row << ", column " << col << ": " << ours << " not " << sum;
    }
}

template <class A, int M, int N>
void test_all() {
  for (Data data : {Data::integers, Data::random, Data::nan})
    for (int steps : {1, 2, 3, 4})
      for (int stride : {1, 4}) {
        test_product<A, M, N, Operand::Along, Operand::Along>(steps, stride, data);
        test_product<A, M, N, Operand::Across, Operand::Across>(steps, stride, data);
        test_product<A, M, N, Operand::Along, Operand::Across>(steps, stride, data);
      }
}

// The banks that the 32 lanes of a load meet: none twice (double: in each half of the warp).
template <class A>
void test_banks() {
  for (int length : {16, 32, 64, 128})
    for (Operand operand : {Operand::Along, Operand::Across}) {
      const int pitch = pitch_of<A>(operand, length), at_once = sizeof(A) == 4 ? 32 : 16;
      CHECK(pitch >= length && pitch * int(sizeof(A)) % 16 == 0) << "pitch " << pitch << " of " << length;
      for (int first = 0; first < 32; first += at_once) {
        uint32_t banks = 0;
        for (int lane = first; lane < first + at_once; ++lane) {
          const int g = lane / 4, t = lane % 4;
          banks |= 1u << (operand == Operand::Along ? g * pitch + t : t * pitch + g) % at_once;
        }
        CHECK(std::popcount(banks) == at_once) << "pitch " << pitch << " of " << length << ": banks meet";
      }
    }
}

}  // namespace

int main(int count, char** arguments) {
  const bool few = count > 1 && std::string(arguments[1]) == "few";
  test_banks<float>();
  test_banks<double>();
  for (auto order : {cudasim::Order::forward, cudasim::Order::reverse, cudasim::Order::random}) {
    cudasim::options().order = order;
    test_all<float, 2, 4>();
    test_all<float, 1, 2>();
    test_all<double, 2, 4>();
    test_all<double, 1, 2>();
    if (few) break;
  }
  return Check::report();
}
