// Launch plans for Python: how the norms would run on a given GPU. Plain arithmetic, in every build.
#include <pybind11/stl.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>

#include "../interface/plane_plan.h"
#include "../interface/row_plan.h"
#include "../interface/whitening_plan.h"
#include "common/tensors.h"
#include "module.h"

namespace py = pybind11;

namespace torchfastnorm::bindings {
namespace {

DType dtype_from(const py::object& dtype) {
  TORCH_CHECK_TYPE(THPDtype_Check(dtype.ptr()), "expected a torch.dtype");
  return dtype_of(reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type);
}

// regime, threads, cluster, blocks
PlanChoice choice_of(const std::tuple<int, int, int, int64_t>& choice) {
  return {int8_t(std::get<0>(choice)), std::get<1>(choice), std::get<2>(choice), std::get<3>(choice)};
}
const std::tuple<int, int, int, int64_t> no_choice{-1, 0, 0, 0};

py::dict row_plan(bool backward, bool centered, int64_t rows, int64_t cols, const py::object& x, const py::object& h,
                  const py::object& y, const py::object& param, int multiprocessors, int shared_bytes,
                  int cluster_blocks, const std::tuple<int, int, int, int64_t>& choice,
                  const std::array<int, 4>& resident_clusters) {
  HANDLE_TH_ERRORS
  const RowTypes types = row_types(dtype_from(x), dtype_from(h), dtype_from(y), dtype_from(param));
  const RowProblem problem{rows, cols, types.kept, centered, choice_of(choice)};
  const DeviceLimits device{multiprocessors, shared_bytes, cluster_blocks, resident_clusters};
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
  out["static_bytes"] = plan.static_bytes;
  out["registers"] = plan.registers;
  out["kept_columns"] = std::min(cols, plan.kept_vectors * (16 / size_of(types.kept)));
  out["partial_rows"] = plan.partial_rows;
  out["cooperative"] = plan.cooperative;
  return out;
  END_HANDLE_TH_ERRORS_PYBIND
}

py::dict plane_plan(int64_t samples, int64_t channels, int64_t spatial, int64_t groups, int sets, bool channels_last,
                    const py::object& dtype, bool batch_statistics, bool ordered, int kept, int staged,
                    int multiprocessors, int shared_bytes, int cluster_blocks,
                    const std::tuple<int, int, int, int64_t>& choice) {
  HANDLE_TH_ERRORS
  const PlaneShape shape{samples, channels, spatial, groups,
                         channels_last ? Layout::ChannelsLast : Layout::ChannelsFirst};
  const PlaneProblem problem{shape, Sets(sets), dtype_from(dtype), batch_statistics, ordered,
                             kept,  staged,     choice_of(choice)};
  const PlanePlan plan = plan_plane_norm(problem, {multiprocessors, shared_bytes, cluster_blocks});
  py::dict out;
  out["team"] = plan.team == Team::Cluster ? "cluster" : "grid";
  out["channels_last"] = plan.layout == Layout::ChannelsLast;
  out["cooperative"] = plan.cooperative;
  out["threads"] = plan.threads;
  out["cluster"] = plan.cluster;
  out["blocks"] = plan.blocks;
  out["shared_bytes"] = plan.shared_bytes;
  out["static_bytes"] = plan.static_bytes;
  out["registers"] = plan.registers;
  out["lanes"] = plan.lanes;
  out["slots_per_piece"] = plan.slots_per_piece;
  out["chunks"] = plan.chunks;
  out["piece"] = plan.piece;
  out["tile"] = plan.tile;
  out["rounds"] = plan.rounds;
  out["kept_rounds"] = plan.kept_rounds;
  out["sets_per_task"] = plan.sets_per_task;
  out["tasks"] = plan.tasks;
  out["slabs"] = plan.slabs;
  out["entries"] = plan.entries;
  return out;
  END_HANDLE_TH_ERRORS_PYBIND
}

py::dict whitening_plan(bool transform, int64_t samples, int64_t channels, int64_t spatial, int64_t groups,
                        bool channels_last, const py::object& dtype, bool two_tensors, int multiprocessors,
                        int shared_bytes, int cluster_blocks) {
  HANDLE_TH_ERRORS
  const PlaneShape shape{samples, channels, spatial, groups,
                         channels_last ? Layout::ChannelsLast : Layout::ChannelsFirst};
  const WhiteningProblem problem{shape, dtype_from(dtype), two_tensors};
  const DeviceLimits device{multiprocessors, shared_bytes, cluster_blocks};
  const WhiteningPlan plan =
      transform ? plan_whitening_transform(problem, device) : plan_whitening_moments(problem, device);
  py::dict out;
  out["threads"] = plan.threads;
  out["blocks"] = plan.blocks;
  out["shared_bytes"] = plan.shared_bytes;
  out["static_bytes"] = plan.static_bytes;
  out["registers"] = plan.registers;
  out["tile"] = plan.tile;
  out["positions"] = plan.positions;
  out["bundle"] = plan.bundle;
  out["tiles"] = plan.tiles;
  out["slabs"] = plan.slabs;
  out["finish_blocks"] = plan.finish_blocks;
  out["finish_threads"] = plan.finish_threads;
  out["partial_bytes"] = plan.partial_bytes;
  out["read_bytes"] = plan.read_bytes;
  out["written_bytes"] = plan.written_bytes;
  return out;
  END_HANDLE_TH_ERRORS_PYBIND
}

const ModulePart part([](py::module_& m) {
  m.def("row_plan", row_plan, py::arg("backward"), py::arg("centered"), py::arg("rows"), py::arg("cols"),
        py::arg("x_dtype"), py::arg("h_dtype"), py::arg("y_dtype"), py::arg("param_dtype"), py::arg("multiprocessors"),
        py::arg("shared_bytes"), py::arg("cluster_blocks"), py::arg("choice") = no_choice,
        py::arg("resident_clusters") = std::array<int, 4>{},
        "The launch plan of a row norm, as a dict (csrc/interface/row_plan.h).");
  m.def("plane_plan", plane_plan, py::arg("samples"), py::arg("channels"), py::arg("spatial"), py::arg("groups"),
        py::arg("sets"), py::arg("channels_last"), py::arg("dtype"), py::arg("batch_statistics"), py::arg("ordered"),
        py::arg("kept"), py::arg("staged"), py::arg("multiprocessors"), py::arg("shared_bytes"),
        py::arg("cluster_blocks"), py::arg("choice") = no_choice,
        "The launch plan of a norm of feature maps, as a dict (csrc/interface/plane_plan.h).");
  m.def("whitening_plan", whitening_plan, py::arg("transform"), py::arg("samples"), py::arg("channels"),
        py::arg("spatial"), py::arg("groups"), py::arg("channels_last"), py::arg("dtype"), py::arg("two_tensors"),
        py::arg("multiprocessors"), py::arg("shared_bytes"), py::arg("cluster_blocks"),
        "The launch plan of one of whitening's passes, as a dict (csrc/interface/whitening_plan.h).");
});

}  // namespace
}  // namespace torchfastnorm::bindings
