// What every autograd node of this library shares: saved tensors, their release, the hooks of compiled autograd, and
// the error of a second backward. An op's node adds its numbers and its backward().
//
// Own nodes, because torch::autograd::Function costs more than a small norm takes.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <memory>
#include <mutex>

#include "tensors.h"

namespace torchfastnorm::bindings {

using torch::autograd::variable_list;
using torch::dynamo::autograd::CompiledNodeArgs;
using torch::dynamo::autograd::SwapSavedVariables;

template <size_t count>
class NormNode : public torch::autograd::Node {
 public:
  // `is_output`: the tensor is one of this node's results; its history is this node, which it must not own.
  void save(size_t slot, const Tensor& tensor, bool is_output = false) {
    saved_[slot] = torch::autograd::SavedVariable(tensor, is_output);
    is_output_[slot] = is_output;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved_) variable.reset_data();
    released_ = true;
  }

  void compiled_args(CompiledNodeArgs& args) const override {
    for (size_t i = 0; i < count; ++i) args.collect(saved_[i], is_output_[i]);
    collect_numbers(args);
  }

  variable_list apply_with_saved(const variable_list& grads, SwapSavedVariables& swap) override {
    for (auto& variable : saved_) swap.before(variable);
    auto result = apply(variable_list(grads));
    for (auto& variable : saved_) swap.after(variable);
    return result;
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!released_, torch::autograd::ERR_BACKWARD_TWICE);
    return backward(grads);
  }

 protected:
  Tensor unpack(size_t slot) { return saved_[slot].unpack(is_output_[slot] ? getptr() : nullptr); }

  virtual variable_list backward(const variable_list& grads) = 0;
  // Everything that backward() computes with besides the saved tensors, for compiled autograd's cache key.
  virtual void collect_numbers(CompiledNodeArgs& args) const = 0;

 private:
  std::array<torch::autograd::SavedVariable, count> saved_;
  std::array<bool, count> is_output_{};
  bool released_ = false;
};

// Nodes are counted intrusively in newer torch, held by shared_ptr with a deleter of torch's own in 2.11.
template <class N, class... Arguments>
auto make_node(Arguments&&... arguments) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, N>)
    return c10::make_intrusive<N>(std::forward<Arguments>(arguments)...);
  else
    return std::shared_ptr<N>(new N(std::forward<Arguments>(arguments)...), [](auto* node) { deleteNode(node); });
}

}  // namespace torchfastnorm::bindings
