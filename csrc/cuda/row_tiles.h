// The tile sizes that row_plan.cpp plans with and the row kernels are compiled for.
#pragma once
#include "../interface/types.h"

namespace torchfastnorm::cuda {

// One load moves a vector of 16 bytes.
constexpr int elements_per_vector(DType type) { return int(16 / size_of(type)); }

// Rows of up to 32 * warp_vectors vectors belong to a warp or a part of one.
constexpr int warp_vectors = 4;

// Forward, Warp: the fewer vectors a row takes of a thread, the more rows a thread has in flight: 64 bytes always.
constexpr int forward_warp_threads = 128;
constexpr int forward_warp_blocks = 5;  // resident per multiprocessor (96 registers): 40 KB in flight
constexpr int forward_rows_in_flight(int vectors) { return warp_vectors / vectors; }

// Forward, Registers: 4 vectors a thread, packed as loaded, fit in 80 registers without spilling: 768 threads.
constexpr int forward_block_vectors = 4;
constexpr int forward_block_threads = 768;
// A block of a cluster takes 32 KB of a row as long as 8 blocks are enough: 512 threads, of which a multiprocessor
// holds one block at more than 64 registers and two at fewer.
constexpr int forward_cluster_vectors = 2048;

// Backward keeps two tensors and two fp32 sums per column: what fits in 128 registers without spilling.
constexpr int backward_vectors(DType type) { return type == DType::Float ? 3 : 2; }
constexpr int backward_block_threads = 512;  // 128 registers each fill a multiprocessor
constexpr int backward_warp_threads(int vectors) { return vectors == warp_vectors ? 256 : 512; }
constexpr int backward_warp_blocks = 1;  // per multiprocessor: 32 KB in flight, and few partial rows
constexpr int backward_rows_in_flight(int vectors) { return vectors == 1 ? 2 : 1; }

// Backward, Streamed: a block owns 256 vectors of columns and walks down the rows.
constexpr int column_threads = 256;
constexpr int column_blocks = 3;  // per multiprocessor
constexpr int stream_threads = 512;

// Static shared memory of the block kernels, at most (double; the backward's holds column_finish's too). It counts
// against the same limit as dynamic shared memory; tests/native/cuda_rules.py compares both with what was compiled.
constexpr int forward_static_bytes = 2048;
constexpr int backward_static_bytes = 10240;

}  // namespace torchfastnorm::cuda
