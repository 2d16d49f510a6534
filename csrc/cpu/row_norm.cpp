// Who computes what: rows over threads; blocks of columns over threads where there are fewer rows than that pays.
//
//   forward    every row is independent, and its result does not depend on who computes it
//   backward   grad_h as forward; grad_weight and grad_bias from partial sums over chunks of rows, merged in order.
//              The chunks depend on rows and cols only, so the result is the same for any number of threads.
#include "row_norm.h"

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "row_kernels.h"

namespace torchfastnorm::cpu {
namespace {

// Chunks of rows: enough for many threads, few enough that writing and merging their sums stays a small part.
constexpr int64_t kMostChunks = 64, kLeastRows = 8;

struct Chunks {
  int64_t rows, count;
};
Chunks chunks_of(int64_t rows) {
  const int64_t even = (rows + kMostChunks - 1) / kMostChunks;
  const int64_t per_chunk = std::max(kLeastRows, (even + 3) / 4 * 4);  // the kernels take up to four at a time
  return {per_chunk, std::max<int64_t>(1, (rows + per_chunk - 1) / per_chunk)};  // none: one empty chunk, zeros
}

bool by_columns(const RowNormBackward& a) { return block_count(a.cols) > chunks_of(a.rows).count; }

void backward_by_columns(const RowNormBackward& a, const BackwardKernels& kernels) {
  const int64_t blocks = block_count(a.cols);
  auto* of_blocks = static_cast<GradientSums*>(a.workspace);
  auto* of_rows = of_blocks + a.rows * blocks;
  parallel_for(a.rows * blocks, kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) of_blocks[i] = kernels.sums(a, i / blocks, i % blocks);
  });
  for (int64_t row = 0; row < a.rows; ++row) {
    of_rows[row] = {};
    for (const GradientSums* part = of_blocks + row * blocks; part < of_blocks + (row + 1) * blocks; ++part)
      of_rows[row] = {of_rows[row].g + part->g, of_rows[row].g_centered + part->g_centered};
  }
  parallel_for(blocks, kBlock * a.rows, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) kernels.columns(a, block, of_rows);
  });
}

}  // namespace

void row_norm_forward(const RowNormForward& a, bool centered) {
  if (a.rows == 0) return;
  const ForwardKernels kernels = row_kernels().forward(a, centered);
  const int64_t blocks = block_count(a.cols);
  if (blocks < 2 || a.rows >= thread_count())
    return parallel_for(a.rows, a.cols, [&](int64_t begin, int64_t end) { kernels.rows(a, begin, end); });
  std::vector<Moments> of_blocks(size_t(a.rows * blocks)), of_rows(static_cast<size_t>(a.rows));
  parallel_for(a.rows * blocks, kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) of_blocks[size_t(i)] = kernels.moments(a, i / blocks, i % blocks);
  });
  for (int64_t row = 0; row < a.rows; ++row)
    of_rows[size_t(row)] = kernels.merge(of_blocks.data() + row * blocks, blocks);
  parallel_for(a.rows * blocks, kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.apply(a, i / blocks, i % blocks, of_rows[size_t(i / blocks)]);
  });
}

int64_t row_norm_backward_workspace(const RowNormBackward& a, bool centered) {
  if (by_columns(a)) return a.rows * (block_count(a.cols) + 1) * int64_t(sizeof(GradientSums));
  if (!a.grad_weight && !a.grad_bias) return 0;
  return chunks_of(a.rows).count * (1 + centered) * a.cols * size_of(accumulator_of(a.h_type));
}

void row_norm_backward(const RowNormBackward& a, bool centered) {
  const BackwardKernels kernels = row_kernels().backward(a, centered);
  if (by_columns(a)) return backward_by_columns(a, kernels);
  if (!a.grad_weight && !a.grad_bias)
    return parallel_for(a.rows, a.cols,
                        [&](int64_t begin, int64_t end) { kernels.rows(a, begin, end, nullptr, nullptr); });
  const Chunks chunks = chunks_of(a.rows);
  const int64_t run = a.cols * size_of(accumulator_of(a.h_type));
  parallel_for(chunks.count, chunks.rows * a.cols, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      char* sums = static_cast<char*>(a.workspace) + chunk * (1 + centered) * run;
      kernels.rows(a, chunk * chunks.rows, std::min(a.rows, (chunk + 1) * chunks.rows), sums,
                   centered ? sums + run : nullptr);
    }
  });
  parallel_for(a.cols, chunks.count,
               [&](int64_t begin, int64_t end) { kernels.merge(a, begin, end, a.workspace, chunks.count); });
}

}  // namespace torchfastnorm::cpu
