// The kernels that each instruction set provides (row_forward.h, row_backward.h), and how a row is cut.
//
// A row is cut into blocks of kBlock columns. Every sum over a row is formed block by block and merged in the order
// of the blocks, so that the result depends on the row's contents, length and type alone, whether one thread works
// through the row or several share its blocks.
#pragma once
#include <cstdint>

#include "../interface/row_norm.h"

namespace torchfastnorm::cpu {

// 32 KB of floats: a block stays in the first-level cache between the passes over it.
constexpr int64_t kBlock = 8192;

inline int64_t block_count(int64_t cols) { return (cols + kBlock - 1) / kBlock; }

// Of a block, or of a row: the mean, and the sum of squared distances from it. RMSNorm: mean is 0.
struct Moments {
  double count, mean, squares;
};

struct Span {
  int64_t begin, count;
};
inline Span block_span(int64_t block, int64_t cols) {
  const int64_t begin = block * kBlock;
  return {begin, cols - begin < kBlock ? cols - begin : kBlock};
}

struct ForwardKernels {
  // Rows [begin, end), complete.
  void (*rows)(const RowNormForward&, int64_t begin, int64_t end);
  // The steps of it for one block of one row, for rows that several threads share.
  Moments (*moments)(const RowNormForward&, int64_t row, int64_t block);
  Moments (*merge)(const Moments* of_blocks, int64_t blocks);
  void (*apply)(const RowNormForward&, int64_t row, int64_t block, const Moments& of_row);
};

// Over a block, or over a row: sum(g) (LayerNorm) and sum(g * (h - mean)).
struct GradientSums {
  double g, g_centered;
};

struct BackwardKernels {
  // Rows [begin, end), complete. The two sums over these rows, cols accumulators each, are written where not null.
  // bias_sums is null exactly where weight_sums is or the op has no bias.
  void (*rows)(const RowNormBackward&, int64_t begin, int64_t end, void* weight_sums, void* bias_sums);
  // The two steps for blocks of columns, of one row and of all rows; `columns` finishes grad_weight and grad_bias.
  GradientSums (*sums)(const RowNormBackward&, int64_t row, int64_t block);
  void (*columns)(const RowNormBackward&, int64_t block, const GradientSums* of_rows);
  // grad_weight and grad_bias of columns [begin, end) from the sums of `chunks` chunks of rows.
  void (*merge)(const RowNormBackward&, int64_t begin, int64_t end, void* sums, int64_t chunks);
};

struct RowKernels {
  const char* capability;
  ForwardKernels (*forward)(const RowNormForward&, bool centered);
  BackwardKernels (*backward)(const RowNormBackward&, bool centered);
};

// The best that this machine runs (backend.cpp).
const RowKernels& row_kernels();

// Whether so much is more than a part of what this machine's last-level caches hold (backend.cpp).
bool exceeds_caches(int64_t bytes, double part);

// Whether an output made of runs of so many bytes is stored past the caches, in a call that moves so many bytes in all.
// Such a store need not read its line first, a quarter to a third of all traffic, and pushes nothing out. Lines must be
// whole, or it takes longer.
inline bool goes_past_caches(const void* output, int64_t run_bytes, int64_t all_bytes, double part) {
  return reinterpret_cast<uintptr_t>(output) % 64 == 0 && run_bytes % 64 == 0 && exceeds_caches(all_bytes, part);
}
// From which part on: where a call and an elementwise op that reads its output take less time together (measured on an
// AMD EPYC with AVX-512, docs/reductions.md).
constexpr double kPastInForward = 1, kPastInBackward = 0.5;

}  // namespace torchfastnorm::cpu
