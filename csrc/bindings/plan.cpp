// Launch plans for Python: how the row norms would run on a given GPU. Plain arithmetic, in every build.
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>

#include "../interface/row_plan.h"
#include "common/tensors.h"
#include "module.h"

namespace py = pybind11;

namespace torchfastnorm::bindings {
namespace {

DType dtype_from(const py::object& dtype) {
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()), "expected a torch.dtype");
  return dtype_of(reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
}

py::dict row_plan(bool backward, bool centered, int64_t rows, int64_t cols, const py::object& x, const py::object& h,
                  const py::object& y, const py::object& param, int multiprocessors, int shared_bytes,
                  int cluster_blocks) {
  HANDLE_TH_ERRORS
  const RowTypes types = row_types(dtype_from(x), dtype_from(h), dtype_from(y), dtype_from(param));
  const RowProblem problem{rows, cols, types.kept, centered};
  const DeviceLimits device{multiprocessors, shared_bytes, cluster_blocks};
  const RowPlan plan = backward ? plan_row_backward(problem, device) : plan_row_forward(problem, device);
  constexpr const char* names[] = {"warp", "registers", "shared", "streamed"};
  py::dict out;
  out["residency"] = names[int(plan.residency)];
  out["general_types"] = types.general;
  out["vectors"] = plan.vectors;
  out["lanes"] = plan.lanes;
  out["rows_in_flight"] = plan.rows_in_flight;
  out["threads"] = plan.threads;
  out["cluster"] = plan.cluster;
  out["blocks"] = plan.blocks;
  out["shared_bytes"] = plan.shared_bytes;
  out["kept_columns"] = std::min(cols, plan.kept_vectors * (16 / size_of(types.kept)));
  out["partial_rows"] = plan.partial_rows;
  out["cooperative"] = plan.cooperative;
  return out;
  END_HANDLE_TH_ERRORS_PYBIND
}

const ModulePart part([](py::module_& m) {
  m.def("row_plan", row_plan, py::arg("backward"), py::arg("centered"), py::arg("rows"), py::arg("cols"),
        py::arg("x_dtype"), py::arg("h_dtype"), py::arg("y_dtype"), py::arg("param_dtype"), py::arg("multiprocessors"),
        py::arg("shared_bytes"), py::arg("cluster_blocks"),
        "The launch plan of a row norm, as a dict (csrc/interface/row_plan.h).");
});

}  // namespace
}  // namespace torchfastnorm::bindings
