// How a file of the bindings adds functions to torchfastnorm._C that are not tensor ops: a file-scope
//
//   const ModulePart part([](pybind11::module_& m) { m.def(...); });
#pragma once
#include <pybind11/pybind11.h>

namespace torchfastnorm::bindings {

struct ModulePart {
  using Bind = void (*)(pybind11::module_&);
  explicit ModulePart(Bind bind);
};

}  // namespace torchfastnorm::bindings
