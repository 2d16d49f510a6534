// Which backend runs an op on a tensor, on which stream: the only place of the bindings that knows of devices.
#pragma once
#include <c10/core/DeviceGuard.h>

#include <atomic>

#include "../../interface/backend.h"
#include "tensors.h"

#ifdef TORCHFASTNORM_CUDA
// Torch's own C function, the same in every version, so that no CUDA header of torch is needed. Weak: a build with
// CUDA loads into a torch without it, where no CUDA tensor ever comes by.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace torchfastnorm::bindings {

// Tests install another backend for CPU tensors (module.cpp, _set_cpu_backend).
inline std::atomic<const Backend*> cpu_backend{&cpu::backend};

// The device of `tensor` is current, and `backend` and `stream` are its, while this lives.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor) {
    if (C10_LIKELY(tensor.is_cpu())) {
      backend_ = cpu_backend.load(std::memory_order_relaxed);
      return;
    }
#ifdef TORCHFASTNORM_CUDA
    TORCH_CHECK(tensor.is_cuda() && aoti_torch_get_current_cuda_stream, "torchfastnorm: no backend for device ",
                tensor.device(), "; move the tensors to the CPU or to a CUDA device of a torch with CUDA");
    guard_.reset_device(tensor.device());
    backend_ = &cuda::backend;
    TORCH_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream_) == 0,
                "torchfastnorm: torch gave no current stream for ", tensor.device());
#else
    TORCH_CHECK(false, "torchfastnorm: this build has no backend for device ", tensor.device(),
                "; move the tensors to the CPU, or rebuild with FORCE_CUDA=1 (see the README)");
#endif
  }

  const Backend& backend() const { return *backend_; }
  Stream stream() const { return stream_; }

 private:
  const Backend* backend_ = nullptr;
  Stream stream_ = nullptr;
#ifdef TORCHFASTNORM_CUDA
  c10::OptionalDeviceGuard guard_;
#endif
};

}  // namespace torchfastnorm::bindings
