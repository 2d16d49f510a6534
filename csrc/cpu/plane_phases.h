// Who computes what, for the norms of feature maps: plane_kernels.h tells how planes are cut.
//
//   channels first   sets over threads, complete: statistics, then y from cache
//   channels last    slabs over threads, complete
//   in phases        blocks, or tiles of chunks of rows, over threads; then the sets; then blocks, or tiles, again:
//                    where there are too few sets or slabs
//
// Both ways form the same sums and merge them in the same order: results do not depend on the number of threads.
#pragma once
#include "../math/switch_norm.h"
#include "common/parallel.h"
#include "plane_kernels.h"

namespace torchfastnorm::cpu {

// Parts of the workspace, one after the other; without a base only their size is found.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T = void>
  T* take(int64_t bytes) {
    char* const part = base_ ? base_ + size_ : nullptr;
    size_ += (bytes + 15) / 16 * 16;
    return reinterpret_cast<T*>(part);
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

// Planes of one element are one row of channels; one channel is one plane in either layout.
template <class ARGUMENTS>
bool channels_first(const ARGUMENTS& a) {
  return a.shape.channels == 1 || (a.shape.layout == Layout::ChannelsFirst && a.shape.spatial > 1);
}
template <class ARGUMENTS>
bool nothing_to_read(const ARGUMENTS& a) {
  return a.shape.samples == 0 || a.shape.channels == 0 || a.shape.spatial == 0;
}

// Only this many sets or slabs may be worked on in phases: it needs room for the sums of all.
constexpr int64_t kMostSets = 1024, kMostSlabs = 64;

inline bool shared_evenly(int64_t items) {
  const int64_t threads = thread_count();
  return (items + threads - 1) / threads * threads * 4 <= items * 5;
}

// Itself where it is of that type, and no copy is wanted.
inline const void* widened(const void* parameter, DType type, DType stat, int64_t channels, double fill,
                           Workspace& workspace, bool copy = false) {
  if (parameter && type == stat && !copy) return parameter;
  void* const to = workspace.take(channels * size_of(stat));
  if (to) plane_kernels().widen(to, stat, parameter, type, channels, fill);
  return to;
}

// What is switchable can do with nothing else.
template <class ARGUMENTS>
bool in_phases(const ARGUMENTS& a, const PlaneGeometry& g) {
  return a.mix.terms || (channels_first(a) ? g.sets() <= kMostSets : g.slabs <= kMostSlabs);
}

// goes_past_caches, for one of the outputs of a call that moves as many tensors in all. An output that is not wanted
// does not stand in the way. by_tiles: plane_short.h makes it, which stores runs of any length.
template <class ARGUMENTS>
bool plane_goes_past_caches(const ARGUMENTS& a, const PlaneGeometry& g, bool by_tiles, const void* output,
                            int64_t tensors, double part) {
  const int64_t size = size_of(a.type), run = channels_first(a) ? g.spatial : g.channels;
  const int64_t all_bytes = (tensors * g.slabs * g.rows() + 2) * g.channels * size;  // with weight and bias
  if (by_tiles) return reinterpret_cast<uintptr_t>(output) % uintptr_t(size) == 0 && exceeds_caches(all_bytes, part);
  return goes_past_caches(output, run * size, all_bytes, part);
}

template <class CALL>
void mix_sets(const CALL& call, const SwitchSteps<CALL>& steps) {
  const PlaneGeometry& g = call.geometry;
  parallel_for(g.slabs, g.channels, [&](int64_t begin, int64_t end) { steps.samples(call, begin, end); });
  parallel_for(g.channels, g.slabs, [&](int64_t begin, int64_t end) { steps.channels(call, begin, end); });
  parallel_for(g.slabs, g.channels, [&](int64_t begin, int64_t end) { steps.planes(call, begin, end); });
}

}  // namespace torchfastnorm::cpu
