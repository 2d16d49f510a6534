// Runs plain CUDA C++ kernels on the CPU, for tests: `g++ -std=c++20 -DTORCHFASTNORM_SIM -Itests/native`.
// nvcc builds never see this file; csrc/cuda/common/port.h chooses between it and the real headers.
//
//   one CUDA thread   = one fiber: a stack of its own, switched to by a dozen instructions
//   one launch        = its blocks one after the other; the blocks of a cluster, or of a whole cooperative grid,
//                       are alive together
//   one fiber         runs until a barrier, a warp operation or its end, then the next one that is ready
//   order             of threads, warps and blocks: forward, reverse or random(seed); a right kernel gives the same
//                       bits under each
//   errors            are C++ exceptions (cudasim::Error) thrown out of launch(): a barrier that not all threads
//                       reach, a shuffle from a lane that is not there, a launch that no device would accept
//   sanitizers        AddressSanitizer sees every shared variable as a heap block of its own; ThreadSanitizer sees
//                       every CUDA thread as a thread, ordered by barriers and fences and nothing else
//
// README.md beside this file says which bugs each of them finds, and which none of them can.
#pragma once
#if defined(__CUDACC__)
#error "cudasim.h is for host builds; include csrc/cuda/common/port.h"
#endif

#include "cudasim/access.h"              // counting and checking an access to global memory
#include "cudasim/cooperative_groups.h"  // this_thread_block, this_cluster, this_grid
#include "cudasim/counters.h"            // bytes moved and launches, by kernel name
#include "cudasim/cuda_headers.h"        // NVIDIA's own vector and half types; what __shared__ becomes
#include "cudasim/fibers.h"              // switching between CUDA threads
#include "cudasim/intrinsics.h"          // __syncthreads, __shfl_xor_sync, __ldg, atomicAdd, rsqrtf, ...
#include "cudasim/launch.h"              // launch()
#include "cudasim/options.h"             // the device to imitate, the order to run in, Error
#include "cudasim/sanitizers.h"          // what Address- and ThreadSanitizer must be told
#include "cudasim/shared_memory.h"       // shared memory of a block and of a cluster
#include "cudasim/state.h"               // threads, warps, blocks, clusters, the running launch
#include "cudasim/sync.h"                // barriers and warp operations
