// The registry of launch plans chosen by hand (plan_choice.h), and its Python functions.
#include "plan_choice.h"

#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <map>
#include <mutex>
#include <vector>

#include "module.h"

namespace py = pybind11;

namespace torchfastnorm::bindings {
namespace {

struct Key {
  PlanKernel kernel;
  int device;  // index of a CUDA device, -1 for CPU tensors: what the tests run on
  DType type;
  std::vector<int64_t> sizes;
  auto operator<=>(const Key&) const = default;
};

// Read by the threads that run backward, too.
std::mutex mutex;
std::map<PlanKernel, PlanChoice> forced;
std::map<Key, PlanChoice> table;

int index_of(at::Device device) { return device.is_cpu() ? -1 : device.index(); }

PlanKernel kernel_named(int number) {
  TORCH_CHECK_VALUE(number >= 0 && number < 4, "no plan kernel has the number ", number);
  return static_cast<PlanKernel>(number);
}

void note_whether_chosen() { plans_chosen.store(!forced.empty() || !table.empty(), std::memory_order_relaxed); }

void force_plan(int kernel, int regime, int threads, int cluster, int64_t blocks) {
  HANDLE_TH_ERRORS
  const std::lock_guard<std::mutex> lock(mutex);
  forced[kernel_named(kernel)] = {int8_t(regime), threads, cluster, blocks};
  note_whether_chosen();
  END_HANDLE_TH_ERRORS_PYBIND
}

void release_plan(int kernel) {
  HANDLE_TH_ERRORS
  const std::lock_guard<std::mutex> lock(mutex);
  forced.erase(kernel_named(kernel));
  note_whether_chosen();
  END_HANDLE_TH_ERRORS_PYBIND
}

void tune_plan(int kernel, int device, const py::object& dtype, std::vector<int64_t> sizes, int regime, int threads,
               int cluster, int64_t blocks) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()), "expected a torch.dtype");
  const DType type = dtype_of(reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
  const std::lock_guard<std::mutex> lock(mutex);
  table[{kernel_named(kernel), device, type, std::move(sizes)}] = {int8_t(regime), threads, cluster, blocks,
                                                                   /*tuned=*/true};
  note_whether_chosen();
  END_HANDLE_TH_ERRORS_PYBIND
}

void forget_tuned_plans() {
  const std::lock_guard<std::mutex> lock(mutex);
  table.clear();
  note_whether_chosen();
}

const ModulePart part([](py::module_& m) {
  m.def("force_plan", force_plan, py::arg("kernel"), py::arg("regime"), py::arg("threads"), py::arg("cluster"),
        py::arg("blocks"), "Let a kernel (a PlanKernel) run with this PlanChoice until release_plan.");
  m.def("release_plan", release_plan, py::arg("kernel"));
  m.def("tune_plan", tune_plan, py::arg("kernel"), py::arg("device"), py::arg("dtype"), py::arg("sizes"),
        py::arg("regime"), py::arg("threads"), py::arg("cluster"), py::arg("blocks"),
        "Let a kernel run with this PlanChoice on a device for a dtype and sizes.");
  m.def("forget_tuned_plans", forget_tuned_plans);
});

}  // namespace

PlanChoice look_up_plan(PlanKernel kernel, at::Device device, at::ScalarType type, at::ArrayRef<int64_t> sizes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = forced.find(kernel); found != forced.end()) return found->second;
  const auto found = table.find({kernel, index_of(device), dtype_of(type), sizes.vec()});
  return found == table.end() ? PlanChoice{} : found->second;
}

}  // namespace torchfastnorm::bindings
