#include "fast_entry.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <vector>

namespace torchfastnorm::bindings {
namespace {

const Tensor& no_tensor() {
  static const Tensor undefined;
  return undefined;
}

std::vector<PyMethodDef>& entries() {
  static std::vector<PyMethodDef> all;
  return all;
}

// Parameters are plain too: they differ from tensors only in Python.
bool is_plain_tensor(PyObject* value) { return THPVariable_CheckTypeExact(Py_TYPE(value)); }

}  // namespace

FastArguments::FastArguments(PyObject* const* values, Py_ssize_t given, Py_ssize_t expected)
    : values_(values), plain_(given == expected && !at::impl::torch_function_mode_enabled()) {}

const Tensor& FastArguments::tensor(int i) {
  plain_ = plain_ && is_plain_tensor(values_[i]);
  return plain_ ? THPVariable_Unpack(values_[i]) : no_tensor();
}

OptTensor FastArguments::optional_tensor(int i) {
  if (!plain_ || values_[i] == Py_None) return std::nullopt;
  return tensor(i);
}

c10::SymIntArrayRef FastArguments::shape(int i) {
  if (!plain_) return {};
  const bool tuple = PyTuple_Check(values_[i]);
  plain_ = tuple || PyList_CheckExact(values_[i]);
  const auto size = !plain_ ? 0 : tuple ? PyTuple_GET_SIZE(values_[i]) : PyList_GET_SIZE(values_[i]);
  for (Py_ssize_t d = 0; plain_ && d < size; ++d) {
    PyObject* item = tuple ? PyTuple_GET_ITEM(values_[i], d) : PyList_GET_ITEM(values_[i], d);
    int overflow = 0;
    plain_ = PyLong_CheckExact(item);
    if (plain_) shape_.emplace_back(PyLong_AsLongLongAndOverflow(item, &overflow));
    plain_ = plain_ && overflow == 0;
  }
  return shape_;
}

bool FastArguments::flag(int i) {
  plain_ = plain_ && PyBool_Check(values_[i]);
  return plain_ && values_[i] == Py_True;
}

int64_t FastArguments::integer(int i) {
  int overflow = 0;
  plain_ = plain_ && PyLong_CheckExact(values_[i]);
  const int64_t value = plain_ ? PyLong_AsLongLongAndOverflow(values_[i], &overflow) : 0;
  plain_ = plain_ && overflow == 0;
  return value;
}

double FastArguments::number(int i) {
  plain_ = plain_ && PyFloat_Check(values_[i]);
  return plain_ ? PyFloat_AS_DOUBLE(values_[i]) : 0;
}

std::string_view FastArguments::text(int i) {
  Py_ssize_t size = 0;
  plain_ = plain_ && PyUnicode_Check(values_[i]);
  const char* characters = plain_ ? PyUnicode_AsUTF8AndSize(values_[i], &size) : nullptr;
  if (plain_ && !characters) PyErr_Clear();
  plain_ = plain_ && characters;
  return plain_ ? std::string_view(characters, size) : std::string_view();
}

std::optional<double> FastArguments::optional_number(int i) {
  if (!plain_ || values_[i] == Py_None) return std::nullopt;
  return number(i);
}

OptType FastArguments::optional_dtype(int i) {
  if (!plain_ || values_[i] == Py_None) return std::nullopt;
  plain_ = THPDtype_Check(values_[i]);
  return plain_ ? OptType(reinterpret_cast<THPDtype*>(values_[i])->scalar_type) : std::nullopt;
}

PyObject* call_op(c10::function_ref<Tensor()> op) {
  HANDLE_TH_ERRORS
  Tensor y;
  {
    py::gil_scoped_release without_gil;
    y = op();
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

PyObject* call_pair_op(c10::function_ref<std::tuple<Tensor, Tensor>()> op) {
  HANDLE_TH_ERRORS
  std::tuple<Tensor, Tensor> pair;
  {
    py::gil_scoped_release without_gil;
    pair = op();
  }
  const auto first = py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(std::get<0>(pair))));
  const auto second = py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(std::get<1>(pair))));
  return first && second ? PyTuple_Pack(2, first.ptr(), second.ptr()) : nullptr;
  END_HANDLE_TH_ERRORS
}

FastEntry::FastEntry(const char* name, Function function) {
  auto* method = reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
  entries().push_back({name, method, METH_FASTCALL, nullptr});
}

PyMethodDef* fast_entries() {
  entries().push_back({nullptr, nullptr, 0, nullptr});
  return entries().data();
}

}  // namespace torchfastnorm::bindings
