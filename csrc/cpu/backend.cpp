// The CPU backend's table, and the choice of instruction set: the best this machine runs, made once, at the first
// call. The environment variable TORCHFASTNORM_CPU_CAPABILITY (default, avx2 or avx512) lowers it, for tests and for
// bisecting; a set that the machine lacks is never chosen. TORCHFASTNORM_CPU_CACHE_BYTES stands for the size of the
// last cache.
#include "../interface/backend.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "plane_kernels.h"
#include "row_kernels.h"
#include "whitening_kernels.h"

namespace torchfastnorm::cpu {

namespace default_set {
extern const RowKernels row_kernels;
extern const PlaneKernels plane_kernels;
extern const WhiteningKernels whitening_kernels;
}  // namespace default_set
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
namespace avx2 {
extern const RowKernels row_kernels;
extern const PlaneKernels plane_kernels;
extern const WhiteningKernels whitening_kernels;
}  // namespace avx2
namespace avx512 {
extern const RowKernels row_kernels;
extern const PlaneKernels plane_kernels;
extern const WhiteningKernels whitening_kernels;
}  // namespace avx512
#endif

namespace {

struct Kernels {
  const RowKernels& row;
  const PlaneKernels& plane;
  const WhiteningKernels& whitening;
};

Kernels choose() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  const char* wanted = std::getenv("TORCHFASTNORM_CPU_CAPABILITY");
  if (!wanted) wanted = "";
  if (!std::strcmp(wanted, "default"))
    return {default_set::row_kernels, default_set::plane_kernels, default_set::whitening_kernels};
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("bmi2");
  if (has_avx512 && std::strcmp(wanted, "avx2"))
    return {avx512::row_kernels, avx512::plane_kernels, avx512::whitening_kernels};
  if (has_avx2) return {avx2::row_kernels, avx2::plane_kernels, avx2::whitening_kernels};
#endif
  return {default_set::row_kernels, default_set::plane_kernels, default_set::whitening_kernels};
}

// All last-level caches together, as Linux tells of the first processor's; where it does not, more than there can be.
// (sysconf counts the caches of a whole socket, of which a virtual machine may have two processors.)
int64_t last_cache_bytes() {
  if (const char* wanted = std::getenv("TORCHFASTNORM_CPU_CACHE_BYTES")) return std::atoll(wanted);
  const std::string cache = "/sys/devices/system/cpu/cpu0/cache/index3/";
  int64_t kilobytes = 0;
  std::string sharing;  // a bit for each processor, in hexadecimal digits and commas
  if (!(std::ifstream(cache + "size") >> kilobytes) || !(std::ifstream(cache + "shared_cpu_map") >> sharing))
    return INT64_MAX;
  int of_cache = 0;
  for (const char digit : sharing)
    if (digit != ',') of_cache += __builtin_popcount(unsigned(std::stoi(std::string(1, digit), nullptr, 16)));
  const int64_t caches = of_cache > 0 ? int64_t(std::thread::hardware_concurrency()) / of_cache : 1;
  return (kilobytes << 10) * (caches > 1 ? caches : 1);
}

const Kernels& chosen() {
  static const Kernels kernels = choose();
  return kernels;
}

}  // namespace

const RowKernels& row_kernels() { return chosen().row; }
const PlaneKernels& plane_kernels() { return chosen().plane; }
const WhiteningKernels& whitening_kernels() { return chosen().whitening; }

bool exceeds_caches(int64_t bytes, double part) {
  static const int64_t last_cache = last_cache_bytes();
  return double(bytes) > part * double(last_cache);
}

const char* capability() { return row_kernels().capability; }

const Backend backend = {"cpu",
                         layer_norm_forward,
                         layer_norm_backward_workspace,
                         layer_norm_backward,
                         rms_norm_forward,
                         rms_norm_backward_workspace,
                         rms_norm_backward,
                         batch_norm_forward_workspace,
                         batch_norm_forward,
                         batch_norm_backward_workspace,
                         batch_norm_backward,
                         batch_renorm_forward_workspace,
                         batch_renorm_forward,
                         batch_renorm_backward_workspace,
                         batch_renorm_backward,
                         batch_whitening_moments_workspace,
                         batch_whitening_moments,
                         batch_whitening_transform,
                         group_norm_forward_workspace,
                         group_norm_forward,
                         group_norm_backward_workspace,
                         group_norm_backward,
                         instance_norm_forward_workspace,
                         instance_norm_forward,
                         instance_norm_backward_workspace,
                         instance_norm_backward,
                         switch_norm_forward_workspace,
                         switch_norm_forward,
                         switch_norm_backward_workspace,
                         switch_norm_backward};

}  // namespace torchfastnorm::cpu
