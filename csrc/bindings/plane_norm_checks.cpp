// The checks of the plane norms' arguments, the same for kernels, composite formulas and (through check_plane_norm,
// with symbolic sizes) torch.compile's fake kernels. Exceptions and first words are torch.nn.functional's.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>

#include "common/checks.h"
#include "module.h"
#include "plane_norm.h"

namespace torchfastnorm::bindings {
namespace {

constexpr std::array<std::string_view, 7> activations{"none", "relu", "leaky_relu", "elu", "silu", "gelu", "gelu_tanh"};

constexpr std::array<std::string_view, 5> dialects{"none", "paper", "torchrl", "ludvb", "sb3"};

// A 1-D tensor has no channels; torch accepts an empty one as input of batch_norm.
c10::SymInt channels_of(const Tensor& x) { return x.dim() > 1 ? x.sym_size(1) : c10::SymInt(0); }

c10::SymInt spatial_of(const Tensor& x) {
  c10::SymInt spatial = 1;
  for (int64_t d = 2; d < x.dim(); ++d) spatial *= x.sym_size(d);
  return spatial;
}

void check_per_channel(const PlaneNormInputs& in, const char* argument, const OptTensor& tensor) {
  if (!has(tensor)) return;
  const auto channels = channels_of(in.x);
  const auto fits = [&] {
    return tensor->dim() == 1 && tensor->sym_size(0).sym_eq(channels).expect_true(__FILE__, __LINE__);
  };
  if (in.sets == Sets::Group)
    TORCH_CHECK(fits(), "Expected ", argument, " to be a vector of size equal to the number of channels in input, but ",
                "got ", argument, " of shape ", tensor->sym_sizes(), " and input of shape ", in.x.sym_sizes(), " in ",
                in.name(), "(); channels are input's dimension 1");
  TORCH_CHECK(fits(), argument, " should contain ", channels, " elements not ", tensor->sym_numel(), ": ", in.name(),
              "() got ", argument, " of shape ", tensor->sym_sizes(), " and input of shape ", in.x.sym_sizes(),
              ", whose channels are dimension 1");
  check_parameter(in.name(), argument, tensor, in.x);
}

void check_mask(const PlaneNormInputs& in) {
  const auto& mask = *in.mask;
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, in.name(), "(): mask must be of dtype torch.bool, True where an ",
                   "element counts, but is ", mask.scalar_type(), "; compare it, as in mask != 0");
  check_device(in.name(), "mask", mask, in.x);
  bool fits = mask.dim() <= in.x.dim();
  for (int64_t d = 1; fits && d <= mask.dim(); ++d) {
    const auto size = mask.sym_size(-d);
    const auto expected = d == in.x.dim() - 1 ? c10::SymInt(1) : in.x.sym_size(-d);
    fits = size.sym_eq(1).sym_or(size.sym_eq(expected)).expect_true(__FILE__, __LINE__);
  }
  TORCH_CHECK(fits, in.name(), "(): mask must be broadcastable to (N, 1, spatial...), one value for all channels, but ",
              "has shape ", mask.sym_sizes(), " for input of shape ", in.x.sym_sizes(),
              "; add a dimension of size one ", "for the channels, as in mask[:, None]");
}

void check_switch(const PlaneNormInputs& in) {
  const auto* name = in.name();
  const OptTensor* const weights[] = {&in.mean_weight, &in.var_weight};
  for (int i = 0; i < 2; ++i) {
    const char* argument = i == 0 ? "mean_weight" : "var_weight";
    const auto& weight = *weights[i];
    TORCH_CHECK_TYPE(has(weight), name, "(): argument '", argument, "' must be Tensor, not NoneType");
    const auto size = weight->dim() == 1 ? weight->sym_size(0).guard_int(__FILE__, __LINE__) : 0;
    TORCH_CHECK(size == 2 || size == 3, name, "(): ", argument, " must be a vector of two or three elements, but has ",
                "shape ", weight->sym_sizes(), "; three are for instance, layer, batch");
    check_parameter(name, argument, weight, in.x);
  }
  TORCH_CHECK(in.mean_weight->sym_numel() == in.var_weight->sym_numel(), name,
              "(): mean_weight and var_weight must be ", "of one length, but have ", in.mean_weight->sym_numel(),
              " and ", in.var_weight->sym_numel(), " elements");
  TORCH_CHECK(in.sets == Sets::Instance && !has(in.mask), name,
              "(): a switchable norm is for sets 2 (instance), without mask");
}

void check_running(const PlaneNormInputs& in) {
  const bool mean = has(in.running_mean), var = has(in.running_var);
  if (in.sets == Sets::Instance && !in.switchable()) {
    TORCH_CHECK(in.batch_statistics || (mean && var), "Expected running_mean and running_var to be defined when ",
                "use_input_stats is false in instance_norm(); pass them, or use_input_stats=True");
  }
  if (!in.batch_statistics && !in.switchable()) {
    const char* instead = in.renorms() ? "()" : "(), or training=True";
    TORCH_CHECK(mean, "running_mean must be defined in evaluation mode; pass it to ", in.name(), instead);
    TORCH_CHECK(var, "running_var must be defined in evaluation mode; pass it to ", in.name(), instead);
  }
  TORCH_CHECK_VALUE(mean == var, "running_mean and running_var must either both be None or neither be None, but only ",
                    mean ? "running_mean" : "running_var", " was given to ", in.name(), "()");
  if (has(in.batches)) {
    TORCH_CHECK(in.batches->scalar_type() == at::kLong && in.batches->dim() == 0, in.name(), "(): num_batches_tracked ",
                "must be an int64 scalar, but has dtype ", in.batches->scalar_type(), " and shape ",
                in.batches->sym_sizes(), "; make it torch.tensor(0)");
    check_device(in.name(), "num_batches_tracked", *in.batches, in.x);
  }
  TORCH_CHECK_TYPE(in.momentum || !in.batch_statistics || has(in.batches), in.name(),
                   "(): argument 'momentum' must be float, not NoneType");
}

}  // namespace

Activation activation_named(const char* op, std::string_view name) {
  const auto found = std::find(activations.begin(), activations.end(), name);
  TORCH_CHECK_VALUE(found != activations.end(), op, "(): unknown activation '", name, "'; one of ",
                    c10::Join(", ", activations));
  return static_cast<Activation>(found - activations.begin());
}

Renorm renorm_named(const char* op, std::string_view name) {
  const auto found = std::find(dialects.begin(), dialects.end(), name);
  TORCH_CHECK_VALUE(found != dialects.end(), op, "(): unknown dialect '", name, "'; one of ",
                    c10::Join(", ", at::ArrayRef<std::string_view>(dialects).slice(1)));
  return static_cast<Renorm>(found - dialects.begin());
}

std::array<double, 6> list_of(const RenormBounds& b) {
  return {b.r_max, b.d_max, b.r_begin, b.r_end, b.d_begin, b.d_end};
}
RenormBounds bounds_of(const char* op, at::ArrayRef<double> list) {
  TORCH_CHECK_VALUE(list.size() == 6, op, "(): bounds are r_max, d_max, and where their ramps begin and end, but has ",
                    list.size(), " elements");
  return {list[0], list[1], list[2], list[3], list[4], list[5]};
}

uint8_t switch_terms_of(const PlaneNormInputs& in) {
  if (in.mean_weight->sym_numel().guard_int(__FILE__, __LINE__) == 3) return SwitchInstance | SwitchLayer | SwitchBatch;
  return in.x.dim() == 2 ? SwitchLayer | SwitchBatch : SwitchInstance | SwitchLayer;
}

Sets sets_named(int64_t number) {
  TORCH_CHECK_VALUE(number >= 0 && number < 3, "plane_norm(): unknown sets ", number,
                    "; 0 (batch), 1 (group) or 2 (instance)");
  return static_cast<Sets>(number);
}

void check_writes_nothing(const PlaneNormInputs& in) {
  TORCH_CHECK(!in.updates(), "torch.ops.torchfastnorm.", in.name(), " writes nothing; to update running statistics ",
              "call ", in.name(), "_with_update, or torchfastnorm.functional.", in.name(), ", which chooses");
}

void check_tensors(const PlaneNormInputs& in) {
  const auto* name = in.name();
  const auto& x = in.x;
  const bool group = in.sets == Sets::Group;
  if (group) {
    TORCH_CHECK(x.dim() >= 2, "Expected at least 2 dimensions for input tensor but received ", x.dim(), " in ", name,
                "(); input is (N, C, *)");
    TORCH_CHECK(in.groups > 0, "Expected num groups to be greater than 0, got ", in.groups, " in ", name, "()");
    TORCH_CHECK((channels_of(x) % in.groups).sym_eq(0).expect_true(__FILE__, __LINE__),
                "Expected number of channels in input to be divisible by num_groups, but got input of shape ",
                x.sym_sizes(), " and num_groups=", in.groups, " in ", name, "(); choose a divisor of ", channels_of(x));
  }
  check_per_channel(in, "running_mean", in.running_mean);
  check_per_channel(in, "running_var", in.running_var);
  check_per_channel(in, "weight", in.weight);
  check_per_channel(in, "bias", in.bias);
  const bool empty_vector =
      in.sets == Sets::Batch && x.dim() == 1 && x.sym_numel().sym_eq(0).expect_true(__FILE__, __LINE__);
  TORCH_CHECK_INDEX(x.dim() >= 2 || empty_vector, "Expected at least 2 dimensions for input tensor but received ",
                    x.dim(), " in ", name, "(); input is (N, C, *)");
  check_floating(name, "input", x.scalar_type());
  if (has(in.residual)) {
    check_residual_shape(name, in.residual->sym_sizes(), x.sym_sizes());
    check_floating(name, "residual", in.residual->scalar_type());
    check_device(name, "residual", *in.residual, x);
  }
  if (has(in.mask)) check_mask(in);
  activation_named(name, in.activation);
  renorm_named(name, in.renorm);
  TORCH_CHECK(!in.renorms() || in.sets == Sets::Batch, "plane_norm(): renorm is for sets 0 (batch)");
  if (in.switchable()) check_switch(in);
}

void check_inputs(const PlaneNormInputs& in) {
  const auto& x = in.x;
  const auto several = [&](const c10::SymInt& elements) { return elements.sym_ne(1).expect_true(__FILE__, __LINE__); };
  if (in.batch_statistics && in.sets == Sets::Instance && !in.switchable())
    TORCH_CHECK_VALUE(several(spatial_of(x)), "Expected more than 1 spatial element when training, got input size ",
                      x.sym_sizes(), " in instance_norm(); use_input_stats=False normalizes with running statistics");
  if (in.batch_statistics && in.sets == Sets::Batch && x.dim() > 0)
    TORCH_CHECK_VALUE(several(x.sym_size(0) * spatial_of(x)),
                      "Expected more than 1 value per channel when training, got input size ", x.sym_sizes(), " in ",
                      in.name(), "(); use a larger batch, or training=False");
  if (in.corrects()) {
    TORCH_CHECK_VALUE(has(in.running_mean) && has(in.running_var), in.name(),
                      "() corrects batch statistics towards the ",
                      "running ones: running_mean and running_var must be given; batch_norm() does without");
    TORCH_CHECK_VALUE(in.bounds.r_max >= 1, in.name(), "(): r_max must be at least 1, but got ", in.bounds.r_max);
    TORCH_CHECK_VALUE(in.bounds.d_max >= 0, in.name(), "(): d_max must not be negative, but got ", in.bounds.d_max);
    TORCH_CHECK_VALUE(in.momentum && *in.momentum >= 0, in.name(), "(): momentum must be a number and not negative");
  }
  if (in.sets == Sets::Batch)
    TORCH_CHECK_VALUE(in.batch_statistics ? !(in.eps <= 0) : !(in.eps < 0), in.name(), " eps must be ",
                      in.batch_statistics ? "positive during training" : "non-negative", ", but got ", in.eps);
  check_running(in);
  check_tensors(in);
  if (in.switchable()) {
    const bool batch = switch_terms_of(in) & SwitchBatch;
    TORCH_CHECK(batch || !has(in.running_mean), in.name(),
                "(): two weights are for instance and layer: there are no running ",
                "statistics; pass None, or three weights");
    TORCH_CHECK(!batch || in.batch_statistics || has(in.running_mean), in.name(),
                "(): running_mean and running_var must be ", "defined in evaluation mode; pass them, or training=True");
  }
  if (in.sets == Sets::Group)
    TORCH_CHECK_VALUE(several(x.sym_size(0) * (channels_of(x) / in.groups) * spatial_of(x)),
                      "Expected more than 1 value per channel when training, got input size ", x.sym_sizes(),
                      " and num_groups=", in.groups, " in group_norm(); use fewer groups");
}

namespace {

void check_plane_norm(const Tensor& x, const OptTensor& running_mean, const OptTensor& running_var,
                      const OptTensor& batches, const OptTensor& weight, const OptTensor& bias,
                      const OptTensor& residual, const OptTensor& mask, int64_t sets, int64_t groups,
                      bool batch_statistics, std::optional<double> momentum, double eps, const std::string& activation,
                      const std::string& renorm, std::vector<double> bounds, const OptTensor& mean_weight,
                      const OptTensor& var_weight, bool moving_average) {
  check_inputs({x, running_mean, running_var, batches, weight, bias, residual, mask, sets_named(sets), groups,
                batch_statistics, momentum, eps, activation, renorm, bounds_of("check_plane_norm", bounds), mean_weight,
                var_weight, moving_average});
}

const ModulePart part([](py::module_& m) {
  m.def("check_plane_norm", torch::wrap_pybind_function(check_plane_norm),
        "The checks of plane_norm_forward's arguments, for fake kernels.");
});

}  // namespace
}  // namespace torchfastnorm::bindings
