// What the bindings of whitening share: one pair of inner ops, their kernels, autograd and composite formulas.
//
//   whitening_forward(input, running_mean?, running_wm?, weight?, bias?, training, momentum, eps, width, method,
//                     iterations) -> (y, mean, wm, decomposition)
//   whitening_backward(grad_y, input, mean, wm, decomposition, weight?, training, width, method, iterations,
//                      param_dtype, wanted) -> (grad_input, grad_weight, grad_bias)
//
// The channels are cut into groups of `width`. mean is (channels), wm (groups, width, width), both in the statistics'
// type: what y = wm (x - mean) was computed with. `decomposition` is what the derivative of wm needs
// (whitening_matrix.h); it has no elements where the running statistics were used. Forward's results are for backward
// alone: they have no derivatives of their own. Calls that write running statistics go to
// whitening_forward_with_update, as in plane_norm.h.
#pragma once
#include <c10/util/FunctionRef.h>

#include "common/dispatch.h"
#include "common/tensors.h"
#include "whitening_matrix.h"

namespace torchfastnorm::bindings {

struct WhiteningInputs {
  const Tensor& x;
  const OptTensor& running_mean;
  const OptTensor& running_wm;
  const OptTensor& weight;
  const OptTensor& bias;
  bool training;
  double momentum;
  double eps;
  int64_t width;
  std::string_view method;
  int64_t iterations;

  bool updates() const { return training && has(running_mean); }
};

using Whitened = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using WhiteningGradients = std::tuple<Tensor, Tensor, Tensor>;
using WhiteningWanted = std::array<bool, 3>;

// whitening_checks.cpp
void check_whitening(const WhiteningInputs&);
void check_whitening_shape(const Tensor& x, int64_t width);
WhiteningMethod whitening_method(std::string_view name, int64_t iterations, double eps);

// whitening.cpp: check, allocate, run the backend, and the small matrices between its two passes.
Whitened whitening_forward(const WhiteningInputs&, bool statistics);  // false: y alone is right
WhiteningGradients whitening_backward(const WhiteningInputs&, const Tensor& grad_y, const Tensor& mean,
                                      const Tensor& wm, const Tensor& decomposition, at::ScalarType param_dtype,
                                      WhiteningWanted wanted);

// whitening_autograd.cpp. `without_graph` calls the public op below autograd.
Tensor whitening_autograd(const WhiteningInputs&, c10::function_ref<Tensor()> without_graph);
Whitened whitening_forward_autograd(const WhiteningInputs&);
WhiteningGradients whitening_backward_autograd(const WhiteningInputs&, const Tensor& grad_y, const Tensor& mean,
                                               const Tensor& wm, const Tensor& decomposition,
                                               at::ScalarType param_dtype, WhiteningWanted wanted);

// whitening_composite.cpp: the formulas in ATen operations, for torch.func, forward-mode AD and further derivatives.
Tensor whitening_composite(const WhiteningInputs&);
WhiteningGradients whitening_backward_composite(const WhiteningInputs&, const Tensor& grad_y, const Tensor& mean,
                                                const Tensor& wm, at::ScalarType param_dtype, WhiteningWanted wanted);

// running = (1 - momentum) * running + momentum * (mean, wm)
void update_running_whitening(const WhiteningInputs&, const Tensor& mean, const Tensor& wm);

}  // namespace torchfastnorm::bindings
