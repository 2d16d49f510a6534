// The table of CUDA functions, and what the current device can do.
#include <array>
#include <mutex>

#include "../interface/backend.h"
#include "../interface/row_plan.h"
#include "common/port.h"

namespace torchfastnorm::cuda {

const Backend backend = {
    .name = "cuda",
    .layer_norm_forward = layer_norm_forward,
    .layer_norm_backward_workspace = layer_norm_backward_workspace,
    .layer_norm_backward = layer_norm_backward,
    .rms_norm_forward = rms_norm_forward,
    .rms_norm_backward_workspace = rms_norm_backward_workspace,
    .rms_norm_backward = rms_norm_backward,
    .batch_norm_forward_workspace = batch_norm_forward_workspace,
    .batch_norm_forward = batch_norm_forward,
    .batch_norm_backward_workspace = batch_norm_backward_workspace,
    .batch_norm_backward = batch_norm_backward,
    .batch_renorm_forward_workspace = batch_renorm_forward_workspace,
    .batch_renorm_forward = batch_renorm_forward,
    .batch_renorm_backward_workspace = batch_renorm_backward_workspace,
    .batch_renorm_backward = batch_renorm_backward,
    .batch_whitening_moments_workspace = batch_whitening_moments_workspace,
    .batch_whitening_moments = batch_whitening_moments,
    .batch_whitening_transform = batch_whitening_transform,
    .group_norm_forward_workspace = group_norm_forward_workspace,
    .group_norm_forward = group_norm_forward,
    .group_norm_backward_workspace = group_norm_backward_workspace,
    .group_norm_backward = group_norm_backward,
    .instance_norm_forward_workspace = instance_norm_forward_workspace,
    .instance_norm_forward = instance_norm_forward,
    .instance_norm_backward_workspace = instance_norm_backward_workspace,
    .instance_norm_backward = instance_norm_backward,
    .switch_norm_forward_workspace = switch_norm_forward_workspace,
    .switch_norm_forward = switch_norm_forward,
    .switch_norm_backward_workspace = switch_norm_backward_workspace,
    .switch_norm_backward = switch_norm_backward,
};

#if defined(TORCHFASTNORM_SIM)

DeviceLimits device_limits() {
  const auto& options = cudasim::options();
  return {options.sm_count, int(options.shared_bytes), options.max_cluster > 1 ? options.max_cluster : 1};
}

#else

// Asked once per device: these queries cost more than a small kernel.
DeviceLimits device_limits() {
  static std::mutex mutex;
  static std::array<DeviceLimits, 64> known{};
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::lock_guard<std::mutex> lock(mutex);
  DeviceLimits& limits = known.at(size_t(device));
  if (limits.multiprocessors == 0) {
    int major = 0, minor = 0, shared = 0, multiprocessors = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    // 16 blocks a cluster are an opt-in of the data-centre chips; consumer Blackwell (sm_12x) has the portable 8.
    limits = {multiprocessors, shared, major < 9 ? 1 : major == 9 || major == 10 ? 16 : 8};
  }
  return limits;
}

#endif

}  // namespace torchfastnorm::cuda
