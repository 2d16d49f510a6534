// The Python module torchfastnorm._C: the fast entries of the ops, and what is not a tensor op.
#include "module.h"

#include <torch/version.h>

#include "common/backend.h"
#include "common/fast_entry.h"

// Given by setup.py.
#ifndef TORCHFASTNORM_VERSION
#define TORCHFASTNORM_VERSION "unknown"
#endif
#ifndef TORCHFASTNORM_CUDA_VERSION
#define TORCHFASTNORM_CUDA_VERSION ""
#endif
#ifndef TORCHFASTNORM_CUDA_ARCHS
#define TORCHFASTNORM_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace torchfastnorm::bindings {
namespace {

std::vector<ModulePart::Bind>& parts() {
  static std::vector<ModulePart::Bind> all;
  return all;
}

#ifdef TORCHFASTNORM_CUDA
constexpr bool has_cuda = true;
// Null in a CPU torch. In a torch with CUDA it must not be: the link order of setup.py decides.
size_t stream_symbol() { return reinterpret_cast<size_t>(&aoti_torch_get_current_cuda_stream); }
#else
constexpr bool has_cuda = false;
size_t stream_symbol() { return 0; }
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = TORCHFASTNORM_VERSION;
  info["torch"] = TORCH_VERSION;
  info["cuda"] = has_cuda;
  info["cuda_version"] = TORCHFASTNORM_CUDA_VERSION;
  info["cuda_archs"] = TORCHFASTNORM_CUDA_ARCHS;
  info["compiler"] = __VERSION__;
  info["cpu_capability"] = cpu::capability();
  return info;
}

void set_cpu_backend(uintptr_t address) {
  cpu_backend = address ? reinterpret_cast<const Backend*>(address) : &cpu::backend;
}

}  // namespace

ModulePart::ModulePart(Bind bind) { parts().push_back(bind); }

}  // namespace torchfastnorm::bindings

PYBIND11_MODULE(_C, m) {
  using namespace torchfastnorm::bindings;
  PyModule_AddFunctions(m.ptr(), fast_entries());
  m.def("build_info", build_info, "How this module was built, as a dict.");
  m.def("stream_symbol", stream_symbol, "Address of torch's current-stream function; 0 where there is no CUDA.");
  m.def("_set_cpu_backend", set_cpu_backend, py::arg("address"),
        "Tests: run CPU tensors on the Backend at this address; 0 restores the default.");
  for (const auto bind : parts()) bind(m);
}
