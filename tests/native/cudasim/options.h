// The device to imitate and the order to run in. Tests set these between launches.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace cudasim {

// A fault of a kernel or of its launch: what a GPU would answer with an error, a hang or a wrong result.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;
  uint64_t seed = 1;                 // of Order::random
  int sm_count = 4;                  // small on purpose: persistent kernels loop even over small inputs
  int blocks_per_sm = 2;             // co-resident blocks that a cooperative launch may count on
  size_t shared_bytes = 227 * 1024;  // most shared memory of one block: sm_90's
  int max_cluster = 16;              // 0: a device without clusters (sm_80)
  bool count_sectors = false;        // see counters.h
  // ThreadSanitizer: blocks within so many threads of each other are checked against each other for races.
  size_t race_window = 1024;
};

// What one multiprocessor of sm_90 holds at once; registers, which also limit it, only the compiler knows.
constexpr int kThreadsPerSm = 2048, kBlocksPerSm = 32;
constexpr size_t kSharedBytesPerSm = 228 * 1024, kReservedSharedBytes = 1024;

constexpr size_t kStaticSharedBytes = 48 * 1024;  // the compiler's limit for SHARED variables together

// Address space of one CUDA thread's stack; only pages that are touched cost memory.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

inline Options options_now;
inline Options& options() { return options_now; }

}  // namespace cudasim
