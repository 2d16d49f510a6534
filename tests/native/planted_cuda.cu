// A kernel that keeps the rules of cuda_rules.py, and with one macro each, one that breaks a rule: test_cuda_check.py.
#include <cuda_runtime.h>

namespace torchfastnorm::cuda {

#if defined(PLANT_SPILL)
constexpr int vectors = 32;  // 128 registers of data, where 1024 threads leave 64
#else
constexpr int vectors = 4;
#endif

// The name and the arguments are those of a kernel that the rules speak of.
template <class X, class H, class Y, bool ADD>
__global__ void __launch_bounds__(1024) row_forward_block(const X* __restrict__ x, Y* __restrict__ y, H scale) {
  float values[vectors][4];
  for (int k = 0; k < vectors; ++k) {
    const int first = (int(threadIdx.x) + k * 1024) * 4;
#if defined(PLANT_NARROW_LOAD)
    for (int j = 0; j < 4; ++j) values[k][j] = __ldg(x + first + 2 * j);  // every other element: no vector
#else
    const float4 vector = __ldg(reinterpret_cast<const float4*>(x + first));
    values[k][0] = vector.x, values[k][1] = vector.y, values[k][2] = vector.z, values[k][3] = vector.w;
#endif
  }
  float sum = 0;
  for (int k = 0; k < vectors; ++k)
    for (int j = 0; j < 4; ++j) sum += values[k][j];
  sum = __syncthreads_or(sum > 0) ? sum : 1;  // every value is needed on both sides of a barrier
  for (int k = 0; k < vectors; ++k) {
#if defined(PLANT_SLOW_DIVISION)
    for (int j = 0; j < 4; ++j) values[k][j] /= sum;
#elif defined(PLANT_DOUBLE)
    for (int j = 0; j < 4; ++j) values[k][j] = float(double(values[k][j]) * double(sum));
#else
    for (int j = 0; j < 4; ++j) values[k][j] *= sum * scale;
#endif
    reinterpret_cast<float4*>(y)[threadIdx.x + k * 1024] =
        make_float4(values[k][0], values[k][1], values[k][2], values[k][3]);
  }
}

template __global__ void row_forward_block<float, float, float, false>(const float*, float*, float);

}  // namespace torchfastnorm::cuda
