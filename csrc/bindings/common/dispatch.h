// Calls through torch's dispatcher, the registration of kernels with it, and the questions an Autograd kernel asks
// before it chooses its way.
#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "tensors.h"

namespace torchfastnorm::bindings {

// For a function-local static: the op must be registered by the time of the first call.
template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("torchfastnorm::" + name).c_str(), "").typed<Signature>();
}

// Inside torch.func.grad, vmap, jvp, ...: autograd nodes written in C++ are not composable there, ATen formulas are.
// The dispatch key says so exactly and costs nothing; functorch's thread-local state outlives the transform.
inline bool under_transform() {
  return C10_UNLIKELY(c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode));
}

inline bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(0).defined(); }
inline bool has_tangent(const OptTensor& tensor) { return tensor && has_tangent(*tensor); }

inline bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
inline bool requires_grad(const OptTensor& tensor) { return tensor && requires_grad(*tensor); }

template <class... Tensors>
bool graph_wanted(const Tensors&... tensors) {
  return c10::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Of a schema: "Tensor(a!)?" becomes "Tensor?".
inline std::string without_aliases(std::string schema) {
  for (size_t at; (at = schema.find('!')) != std::string::npos;) schema.erase(at - 2, 4);
  return schema;
}

// Registers one op for all keys that these bindings know.
template <class Kernel, class Autograd, class Composite>
void implement(torch::Library& m, const char* name, Kernel kernel, Autograd autograd, Composite composite) {
  m.impl(name, torch::dispatch(c10::DispatchKey::CPU, kernel));
#ifdef TORCHFASTNORM_CUDA
  m.impl(name, torch::dispatch(c10::DispatchKey::CUDA, kernel));
#endif
  m.impl(name, torch::dispatch(c10::DispatchKey::Autograd, autograd));
  m.impl(name, torch::dispatch(c10::DispatchKey::FuncTorchBatched, composite));
}

}  // namespace torchfastnorm::bindings
