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

namespace {

// Compiled for the same architectures as all other kernels.
__global__ void probe() {}

// Of so many blocks, each filling a multiprocessor; 0 where there are none, or the driver does not tell.
int resident_clusters(int blocks, int shared_bytes) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &cluster;
  config.numAttrs = 1;
  const auto* function = reinterpret_cast<const void*>(probe);
  const auto allow = [=](cudaFuncAttribute what, int value) {
    return cudaFuncSetAttribute(function, what, value) == cudaSuccess;
  };
  int count = 0;
  if (allow(cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) &&
      (blocks <= 8 || allow(cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) &&
      cudaOccupancyMaxActiveClusters(&count, probe, &config) == cudaSuccess)
    return count;
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

void find_clusters(DeviceLimits& limits) {
  limits.cluster_blocks = 8;  // portable, should the driver not tell
  for (int i = 0; i < 4; ++i) {
    limits.resident_clusters[i] = resident_clusters(2 << i, limits.shared_bytes);
    if (limits.resident_clusters[i] > 0) limits.cluster_blocks = 2 << i;
  }
}

}  // namespace

// Asked once per device: these queries cost more than a small kernel.
DeviceLimits device_limits() {
  static std::mutex mutex;
  static std::array<DeviceLimits, 64> known{};
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::lock_guard<std::mutex> lock(mutex);
  DeviceLimits& limits = known.at(size_t(device));
  if (limits.multiprocessors == 0) {
    int major = 0, shared = 0, multiprocessors = 0;
    cudaFuncAttributes attributes{};
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe)), "cudaFuncGetAttributes");
    DeviceLimits found{multiprocessors, shared, 1};
    // Kernels compiled for an older architecture and translated by the driver know nothing of clusters (port.h).
    if (major >= 9 && attributes.ptxVersion >= 90) find_clusters(found);
    limits = found;
  }
  return limits;
}

#endif

}  // namespace torchfastnorm::cuda
