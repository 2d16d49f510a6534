// The fast way from Python: a METH_FASTCALL function per op that unpacks plain arguments and calls the dispatcher op,
// because torch.ops boxes every argument, which costs a third of a small call.
//
// An entry answers NotImplemented to everything that is not plain (a tensor subclass, a torch function mode, symbolic
// sizes, a wrong type); Python then goes through torch.ops, which is the same op.
#pragma once
#include <Python.h>
#include <c10/core/SymIntArrayRef.h>
#include <c10/util/FunctionRef.h>
#include <c10/util/SmallVector.h>

#include <string_view>
#include <tuple>

#include "tensors.h"

namespace torchfastnorm::bindings {

class FastArguments {
 public:
  FastArguments(PyObject* const* values, Py_ssize_t given, Py_ssize_t expected);

  // Reading is by position; after the first argument that is not plain the results mean nothing and plain() is false.
  const Tensor& tensor(int i);
  OptTensor optional_tensor(int i);
  c10::SymIntArrayRef shape(int i);
  bool flag(int i);
  int64_t integer(int i);
  double number(int i);
  std::string_view text(int i);
  std::optional<double> optional_number(int i);
  OptType optional_dtype(int i);
  bool plain() const { return plain_; }

 private:
  PyObject* const* values_;
  bool plain_;
  c10::SmallVector<c10::SymInt, 5> shape_;
};

// Run an op without the interpreter lock and wrap what it returns; exceptions become Python's.
PyObject* call_op(c10::function_ref<Tensor()> op);
PyObject* call_pair_op(c10::function_ref<std::tuple<Tensor, Tensor>()> op);

// A file-scope object of this type adds an entry to the module.
struct FastEntry {
  using Function = PyObject* (*)(PyObject* self, PyObject* const* values, Py_ssize_t given);
  FastEntry(const char* name, Function function);
};

// All entries, ended by an empty one, for PyModule_AddFunctions.
PyMethodDef* fast_entries();

}  // namespace torchfastnorm::bindings
