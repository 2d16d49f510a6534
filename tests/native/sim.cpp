// The C interface of the sim library: csrc/cuda compiled for the CPU. tests/sim.py loads it through ctypes.
#include <cstdint>
#include <string>

#include "cudasim.h"
#include "interface/backend.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const torchfastnorm::Backend* torchfastnorm_sim_backend() { return &torchfastnorm::cuda::backend; }

// The device to imitate and the order to run in, until the next call.
EXPORT void torchfastnorm_sim_configure(int order, uint64_t seed, int sm_count, int64_t shared_bytes, int max_cluster,
                                        int count_sectors) {
  cudasim::Options& options = cudasim::options();
  options.order = static_cast<cudasim::Order>(order);
  options.seed = seed;
  options.sm_count = sm_count;
  options.shared_bytes = size_t(shared_bytes);
  options.max_cluster = max_cluster;
  options.count_sectors = count_sectors != 0;
}

// JSON, valid until the next call.
EXPORT const char* torchfastnorm_sim_counters() {
  static std::string text;
  text = cudasim::counters_as_json();
  return text.c_str();
}

EXPORT void torchfastnorm_sim_reset_counters() { cudasim::reset_counters(); }
