// One table of functions per backend. The bindings call every op through it, so that the same binding, autograd
// and Python drive the CPU code, the CUDA code, and (in tests) the CUDA code executed on the CPU.
#pragma once
#include "batch_norm.h"
#include "batch_renorm.h"
#include "batch_whitening.h"
#include "group_norm.h"
#include "instance_norm.h"
#include "layer_norm.h"
#include "rms_norm.h"
#include "switch_norm.h"

namespace torchfastnorm {

struct Backend {
  const char* name;
  decltype(&cpu::layer_norm_forward) layer_norm_forward;
  decltype(&cpu::layer_norm_backward_workspace) layer_norm_backward_workspace;
  decltype(&cpu::layer_norm_backward) layer_norm_backward;
  decltype(&cpu::rms_norm_forward) rms_norm_forward;
  decltype(&cpu::rms_norm_backward_workspace) rms_norm_backward_workspace;
  decltype(&cpu::rms_norm_backward) rms_norm_backward;
  decltype(&cpu::batch_norm_forward_workspace) batch_norm_forward_workspace;
  decltype(&cpu::batch_norm_forward) batch_norm_forward;
  decltype(&cpu::batch_norm_backward_workspace) batch_norm_backward_workspace;
  decltype(&cpu::batch_norm_backward) batch_norm_backward;
  decltype(&cpu::batch_renorm_forward_workspace) batch_renorm_forward_workspace;
  decltype(&cpu::batch_renorm_forward) batch_renorm_forward;
  decltype(&cpu::batch_renorm_backward_workspace) batch_renorm_backward_workspace;
  decltype(&cpu::batch_renorm_backward) batch_renorm_backward;
  decltype(&cpu::batch_whitening_moments_workspace) batch_whitening_moments_workspace;
  decltype(&cpu::batch_whitening_moments) batch_whitening_moments;
  decltype(&cpu::batch_whitening_transform) batch_whitening_transform;
  decltype(&cpu::group_norm_forward_workspace) group_norm_forward_workspace;
  decltype(&cpu::group_norm_forward) group_norm_forward;
  decltype(&cpu::group_norm_backward_workspace) group_norm_backward_workspace;
  decltype(&cpu::group_norm_backward) group_norm_backward;
  decltype(&cpu::instance_norm_forward_workspace) instance_norm_forward_workspace;
  decltype(&cpu::instance_norm_forward) instance_norm_forward;
  decltype(&cpu::instance_norm_backward_workspace) instance_norm_backward_workspace;
  decltype(&cpu::instance_norm_backward) instance_norm_backward;
  decltype(&cpu::switch_norm_forward_workspace) switch_norm_forward_workspace;
  decltype(&cpu::switch_norm_forward) switch_norm_forward;
  decltype(&cpu::switch_norm_backward_workspace) switch_norm_backward_workspace;
  decltype(&cpu::switch_norm_backward) switch_norm_backward;
};

namespace cpu {
extern const Backend backend;  // csrc/cpu/backend.cpp
const char* capability();      // "AVX512", "AVX2" or "DEFAULT": the instruction set chosen at load
}  // namespace cpu
namespace cuda {
extern const Backend backend;  // csrc/cuda/backend.cpp; only in builds with CUDA
}  // namespace cuda

}  // namespace torchfastnorm
