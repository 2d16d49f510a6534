// From an op's arguments to launches: which kernel a plan and a combination of dtypes mean.
#pragma once
#include <algorithm>

#include "../interface/row_plan.h"
#include "common/port.h"
#include "row_backward_streamed.cuh"
#include "row_forward.cuh"

namespace torchfastnorm::cuda {

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<X>, Tag<H>, Tag<Y>) with the types of the kernel to run (row_types in interface/row_plan.h).
template <class F>
void with_row_types(const RowTypes& types, [[maybe_unused]] DType x, F f) {
  if (types.general) {
    if (types.kept == DType::Double) return f(Tag<AnyType>(), Tag<double>(), Tag<AnyType>());
    return f(Tag<AnyType>(), Tag<float>(), Tag<AnyType>());
  }
  if (types.kept == DType::BFloat16) return f(Tag<__nv_bfloat16>(), Tag<__nv_bfloat16>(), Tag<__nv_bfloat16>());
#if !defined(TORCHFASTNORM_FEWER_TYPES)
  if (types.kept == DType::Half) return f(Tag<__half>(), Tag<__half>(), Tag<__half>());
  if (x == DType::BFloat16) return f(Tag<__nv_bfloat16>(), Tag<float>(), Tag<__nv_bfloat16>());
#endif
  return f(Tag<float>(), Tag<float>(), Tag<float>());
}

inline int64_t slice_vectors(int64_t cols, DType kept, int cluster) {
  const int64_t elements = elements_per_vector(kept) * int64_t(cluster);
  return (cols + elements - 1) / elements;
}

inline LaunchConfig config_of(const RowPlan& plan) {
  LaunchConfig config;
  config.grid = dim3(unsigned(plan.blocks));
  config.block = dim3(unsigned(plan.threads));
  config.smem = size_t(plan.shared_bytes);
  config.cluster = unsigned(plan.cluster);
  return config;
}

// ---- forward

template <bool CENTERED, class X, class H, class Y>
void launch_row_forward(const RowForwardArguments<Accumulator<H>>& arguments, const RowPlan& plan,
                        cudaStream_t stream) {
  LaunchConfig config = config_of(plan);
  if (plan.residency == Residency::Warp) {
    config.name = "row_forward_warp";
    const auto kernel =
        plan.vectors == 1 ? row_forward_warp<X, H, Y, CENTERED, 1> : row_forward_warp<X, H, Y, CENTERED, warp_vectors>;
    launch(kernel, config, stream, arguments, unsigned(plan.lanes));
  } else {
    config.name = "row_forward_block";
    const auto kernel = plan.residency == Residency::Registers
                            ? row_forward_block<X, H, Y, CENTERED, Residency::Registers>
                            : row_forward_block<X, H, Y, CENTERED, Residency::Shared>;
    launch(kernel, config, stream, arguments);
  }
}

template <bool CENTERED>
void row_norm_forward(const RowNormForward& a, Stream stream) {
  if (a.rows == 0 || a.cols == 0) return;
  const bool add = a.residual != nullptr;
  const DType h_type = add ? a.residual_type : a.x_type;
  const RowTypes types = row_types(a.x_type, h_type, a.y_type, a.param_type);
  const RowPlan plan = plan_row_forward({a.rows, a.cols, types.kept, CENTERED, a.choice}, device_limits());
  with_row_types(types, a.x_type, [&](auto x, auto h, auto y) {
    using X = typename decltype(x)::type;
    using H = typename decltype(h)::type;
    using Y = typename decltype(y)::type;
    using A = Accumulator<H>;
    RowForwardArguments<A> arguments;
    arguments.x = rows_of(a.x, a.x_layout, a.x_type);
    arguments.residual = rows_of(a.residual, a.residual_layout, h_type);
    arguments.sum = output_rows_of(a.sum, a.cols, h_type);
    arguments.y = output_rows_of(a.y, a.cols, a.y_type);
    arguments.weight = {a.weight, a.param_type};
    arguments.bias = {a.bias, a.param_type};
    arguments.mean = static_cast<A*>(a.mean);
    arguments.rstd = static_cast<A*>(a.rstd);
    arguments.rows = a.rows;
    arguments.cols = a.cols;
    arguments.slice_vectors = slice_vectors(a.cols, types.kept, plan.cluster);
    arguments.kept_vectors = plan.shared_bytes / 16;
    arguments.eps = A(a.eps);
    arguments.inverse_cols = A(1.0 / double(a.cols));
    launch_row_forward<CENTERED, X, H, Y>(arguments, plan, static_cast<cudaStream_t>(stream));
  });
}

// ---- backward

// The workspace holds the partial column sums, then (Streamed) the row sums.
struct RowBackwardSpace {
  int64_t partial_bytes, row_bytes;
};
inline RowPlan plan_of(const RowNormBackward& a, bool centered) {
  const RowTypes types = row_types(a.x_type, a.h_type, a.y_type, a.param_type);
  return plan_row_backward({a.rows, a.cols, types.kept, centered, a.choice}, device_limits());
}
inline RowBackwardSpace row_backward_space(const RowNormBackward& a, const RowPlan& plan, bool centered) {
  const int64_t size = size_of(accumulator_of(a.h_type));
  const bool want_columns = a.grad_weight != nullptr || a.grad_bias != nullptr;
  const int64_t partial = want_columns ? plan.partial_rows * (centered ? 2 : 1) * a.cols * size : 0;
  return {(partial + 15) / 16 * 16, plan.residency == Residency::Streamed ? 2 * a.rows * size : 0};
}

template <bool CENTERED>
int64_t row_norm_backward_workspace(const RowNormBackward& a) {
  const RowBackwardSpace space = row_backward_space(a, plan_of(a, CENTERED), CENTERED);
  return space.partial_bytes + space.row_bytes;
}

template <bool CENTERED, class X, class H, class Y>
void launch_row_backward(const RowBackwardArguments<Accumulator<H>>& arguments, const RowPlan& plan,
                         cudaStream_t stream) {
  LaunchConfig config = config_of(plan);
  if (plan.residency == Residency::Streamed) {
    config.grid = dim3(unsigned(std::min<int64_t>(arguments.rows, 0x7fffffff)));
    config.block = dim3(stream_threads);
    config.name = "row_backward_sums";
    launch(row_backward_sums<X, H, Y, CENTERED>, config, stream, arguments);
    config.grid = dim3(unsigned(plan.blocks));
    config.block = dim3(unsigned(plan.threads));
    config.name = "row_backward_columns";
    launch(row_backward_columns<X, H, Y, CENTERED>, config, stream, arguments);
    return;
  }
  config.cooperative = arguments.finish;
  if (plan.residency == Residency::Warp) {
    config.name = "row_backward_warp";
    const auto kernel = plan.vectors == 1 ? row_backward_warp<X, H, Y, CENTERED, 1>
                                          : row_backward_warp<X, H, Y, CENTERED, warp_vectors>;
    launch(kernel, config, stream, arguments, unsigned(plan.lanes));
  } else {
    config.name = "row_backward_block";
    const auto kernel = plan.residency == Residency::Registers
                            ? row_backward_block<X, H, Y, CENTERED, Residency::Registers>
                            : row_backward_block<X, H, Y, CENTERED, Residency::Shared>;
    launch(kernel, config, stream, arguments);
  }
}

template <bool CENTERED>
void row_norm_backward(const RowNormBackward& a, Stream stream) {
  if (a.cols == 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const RowTypes types = row_types(a.x_type, a.h_type, a.y_type, a.param_type);
  const RowPlan plan = plan_of(a, CENTERED);
  const RowBackwardSpace space = row_backward_space(a, plan, CENTERED);
  with_row_types(types, a.x_type, [&](auto x, auto h, auto y) {
    using X = typename decltype(x)::type;
    using H = typename decltype(h)::type;
    using Y = typename decltype(y)::type;
    using A = Accumulator<H>;
    RowBackwardArguments<A> arguments;
    arguments.grad_y = rows_of(a.grad_y, a.grad_y_layout, a.y_type);
    arguments.grad_sum = rows_of(a.grad_sum, a.grad_sum_layout, a.h_type);
    arguments.h = rows_of(a.h, a.h_layout, a.h_type);
    arguments.grad_h = output_rows_of(a.grad_h, a.cols, a.h_type);
    arguments.grad_x = output_rows_of(a.grad_x, a.cols, a.x_type);
    arguments.weight = {a.weight, a.param_type};
    arguments.mean = static_cast<const A*>(a.mean);
    arguments.rstd = static_cast<const A*>(a.rstd);
    arguments.row_sums = reinterpret_cast<A*>(static_cast<char*>(a.workspace) + space.partial_bytes);
    const bool want_columns = a.grad_weight != nullptr || a.grad_bias != nullptr;
    arguments.columns = {want_columns ? static_cast<A*>(a.workspace) : nullptr,
                         a.rows == 0 ? 0 : plan.partial_rows,
                         a.cols,
                         CENTERED ? 2 : 1,
                         a.grad_weight,
                         a.grad_bias,
                         a.param_type};
    arguments.rows = a.rows;
    arguments.cols = a.cols;
    arguments.slice_vectors = slice_vectors(a.cols, types.kept, plan.cluster);
    arguments.inverse_cols = A(1.0 / double(a.cols));
    arguments.finish = plan.cooperative && want_columns;
    if (a.rows > 0) launch_row_backward<CENTERED, X, H, Y>(arguments, plan, cuda_stream);
    if (want_columns && (a.rows == 0 || !arguments.finish)) {
      LaunchConfig config;
      config.name = "column_finish";
      config.block = dim3(512);
      config.grid = dim3(unsigned(std::min<int64_t>((a.cols + 31) / 32 * (CENTERED ? 2 : 1), 0x7fffffff)));
      launch(column_finish<A>, config, cuda_stream, arguments.columns);
    }
  });
}

}  // namespace torchfastnorm::cuda
