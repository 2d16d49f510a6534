// The vocabulary that bindings, CPU and CUDA code share. No torch, no CUDA.
#pragma once
#include <cstdint>

namespace torchfastnorm {

enum class DType : int8_t { Float, Double, Half, BFloat16 };

constexpr int64_t size_of(DType type) { return type == DType::Double ? 8 : type == DType::Float ? 4 : 2; }

// Statistics and partial sums are kept in this type: double for double, float for everything else.
constexpr DType accumulator_of(DType type) { return type == DType::Double ? DType::Double : DType::Float; }

// What may follow a norm of feature maps in the same kernel (math/activation.h).
enum class Activation : int8_t { None, Relu, LeakyRelu, Elu, Silu, Gelu, GeluTanh };

// Batch statistics corrected towards the running ones, in the arithmetic of the paper or of a package (math/renorm.h).
enum class Renorm : int8_t { None, Paper, TorchRl, Ludvb, Sb3 };

// r_max and d_max, reached by a line that begins with 1 and 0 at batch `begin` and ends at batch `end`.
template <class T>
struct RenormBoundsOf {
  T r_max, d_max;
  T r_begin, r_end, d_begin, d_end;
};
using RenormBounds = RenormBoundsOf<double>;

// What is saved of a renormalised set: scale and shift of x_hat = (x - mean) * scale + shift, what its variance adds
// to the gradient, r and d.
constexpr int renormed_values = 6;

// Switchable normalization: which statistics a plane's mean and variance are mixed from (math/switch_norm.h).
enum SwitchTerm : uint8_t { SwitchInstance = 1, SwitchLayer = 2, SwitchBatch = 4 };

struct Switch {
  uint8_t terms = 0;            // of SwitchTerm; none: not switchable
  bool constant_batch = false;  // the batch's term is the running statistics
  bool average = true;    // running = (1 - momentum) * running + momentum * batch; else sums over batches, see there
  bool unbiased = false;  // of layer and batch: n / (n - 1) times their variance
  DType type = DType::Float;          // of the logits and their gradients
  const void* mean_logits = nullptr;  // as many as terms
  const void* var_logits = nullptr;
};

// What somebody has chosen in a launch plan (interface/row_plan.h, plane_plan.h), to measure it; what is left at
// nothing the plan decides. A choice that no kernel can run with is a std::invalid_argument. The CPU has no plans and
// ignores it.
struct PlanChoice {
  int8_t regime = -1;  // a Residency of row norms, a Team of norms of feature maps
  int threads = 0;     // of a block
  int cluster = 0;     // blocks of one
  int64_t blocks = 0;  // of the grid
  bool tuned = false;  // by a table, for other calls of the same sizes too: where it cannot run, the plan's own does
};

// A cudaStream_t; the CPU ignores it.
using Stream = void*;

// Where each row of a (rows, cols) matrix begins. The row index r runs over outer x middle x inner, inner
// fastest; strides are in elements; the elements of one row are contiguous. A contiguous matrix is
// {1, 1, cols, 0, 0}. Three levels describe every view of attention's (batch, sequence, head, column) tensors.
// With more than one level (middle or inner above 1) there are fewer than 2^31 rows.
struct RowLayout {
  int64_t middle = 1;
  int64_t inner = 1;
  int64_t outer_stride = 0;
  int64_t middle_stride = 0;
  int64_t inner_stride = 0;
};

}  // namespace torchfastnorm
