// Threads: torch's own pool, so that torch.set_num_threads holds here too. The only header of csrc/cpu with torch
// in it; instruction-set files must not include it (its inline functions would be compiled for their target).
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace torchfastnorm::cpu {

// Work below this many elements per thread is not worth a parallel region (a few microseconds).
constexpr int64_t kGrainElements = 16384;

// f(begin, end) over [0, count), each item being `elements` elements of work.
template <class F>
void parallel_for(int64_t count, int64_t elements, const F& f) {
  if (count <= 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements));
  if (count <= grain) return f(int64_t(0), count);
  at::parallel_for(0, count, grain, f);
}

inline int64_t thread_count() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

}  // namespace torchfastnorm::cpu
