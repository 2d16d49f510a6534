// How a row norm runs on a GPU: which kernel, how many threads, blocks and clusters, how much shared memory.
// Plain arithmetic on the problem and the device, so that it can be read, tested and asked (torchfastnorm.explain)
// without a GPU. Everything but `blocks` depends on cols, the types and the device alone, never on rows or addresses:
// that is what makes a row's result independent of the batch around it.
#pragma once
#include <array>

#include "row_norm.h"

namespace torchfastnorm {

enum class Residency : int8_t {
  Warp,       // a row in the registers of a warp, or several short rows in one warp
  Registers,  // a row in the registers of a block or a cluster of blocks
  Shared,     // a row in the shared memory of a block or a cluster; forward reads again what does not fit
  Streamed,   // backward only: row sums first, then columns; everything is read twice
};

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;    // dynamic shared memory that one block may have
  int cluster_blocks;  // largest cluster; 1: the device has none

  // Clusters of 2, 4, 8 and 16 blocks that are resident at a time if each block fills a multiprocessor: a cluster lies
  // within a GPC, which need not have a multiple of so many. 0: as many as the multiprocessors make.
  std::array<int, 4> resident_clusters{};
};

// Which kernel the types of a call mean. Kernels are compiled for input, output and what is normalised all of one
// type (with parameters of that type or float), and for bfloat16 in and out around a float residual; every other
// combination runs a general kernel that keeps rows as float (double for double) and looks types up at run time.
struct RowTypes {
  bool general;
  DType kept;  // type that a row is kept in on the chip: its vectors are 16 bytes of this
};
RowTypes row_types(DType x_type, DType h_type, DType y_type, DType param_type);

struct RowProblem {
  int64_t rows, cols;
  DType kept;
  bool centered;  // LayerNorm; RMSNorm otherwise
  PlanChoice choice = {};
};

struct RowPlan {
  Residency residency;
  int vectors;           // of 16 bytes, that a thread keeps in registers (Warp, Registers)
  int lanes;             // threads that share a row (Warp)
  int rows_in_flight;    // that a thread loads before it reduces (Warp)
  int threads;           // per block
  int cluster;           // blocks that share a row
  int64_t blocks;        // of the grid; a multiple of `cluster`
  int64_t shared_bytes;  // dynamic
  int static_bytes;      // shared memory beside it, at most
  int registers;         // of a thread, at most: what the kernel's launch bounds leave
  int64_t kept_vectors;  // of a row that stay on the chip between the passes; all of them unless it is too long
  int64_t partial_rows;  // backward: fp32 rows of partial grad_weight and grad_bias
  bool cooperative;      // backward: the same launch finishes grad_weight and grad_bias after a grid barrier
};

RowPlan plan_row_forward(const RowProblem&, const DeviceLimits&);
RowPlan plan_row_backward(const RowProblem&, const DeviceLimits&);

// 64 K registers a multiprocessor, given out by eights.
constexpr int registers_within(int threads, int blocks) {
  const int even = 65536 / (threads * blocks) / 8 * 8;
  return even < 255 ? even : 255;
}

// The device that the current CUDA context has; in tests, the one that the CPU run pretends to be.
namespace cuda {
DeviceLimits device_limits();
}

}  // namespace torchfastnorm
