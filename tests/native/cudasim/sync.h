// Barriers and warp operations: where threads wait for each other, and the mistakes that would hang a GPU or give
// it undefined results.
#pragma once
#include <bit>
#include <type_traits>

#include "fibers.h"

namespace cudasim {

// same_place: all threads must be at the same line, as __syncthreads() wants it.
inline void arrive_and_wait(Barrier& barrier, const char* what, Location where, bool same_place) {
  Quiet quiet;
  void* edge = barrier.edge.of(barrier.generation);
  release(edge);
  if (barrier.waiting.empty())
    barrier.first = where;
  else if (same_place && (barrier.first.line() != where.line() || barrier.first.column() != where.column()))
    fail(std::string(what) + " reached from two places (other: line " + std::to_string(barrier.first.line()) +
             ", column " + std::to_string(barrier.first.column()) + ")",
         where);
  barrier.waiting.push_back(g.current);
  if (barrier.waiting.size() == barrier.expected) {
    barrier.generation++;
    make_ready(barrier.waiting.data(), barrier.waiting.size());
    barrier.waiting.clear();
  }
  wait_for(what, where);
  acquire(edge);
}

// Every lane of the mask has arrived with the same operation: hand out the results.
inline void complete(Warp& warp, uint32_t mask, const char* what, Location where) {
  Fiber* lanes[32];
  unsigned count = 0;
  uint64_t votes = 0;
  for (unsigned lane = 0; lane < 32; lane++) votes |= uint64_t((mask >> lane & 1) && warp.value[lane]) << lane;
  for (uint32_t left = mask; left; left &= left - 1) {
    const unsigned lane = unsigned(std::countr_zero(left));
    if (warp.op[lane] == WarpOp::shuffle) {
      if (!(mask >> warp.source[lane] & 1)) fail(std::string(what) + " reads a lane that is not in its mask", where);
      warp.result[lane] = warp.value[warp.source[lane]];
    } else if (warp.op[lane] == WarpOp::ballot) {
      warp.result[lane] = votes;
    }
    lanes[count++] = warp.fiber[lane];
  }
  warp.arrived &= ~mask;
  make_ready(lanes, count);
}

// Only __syncwarp orders memory; a shuffle or a vote exchanges registers.
inline uint64_t warp_operation(WarpOp op, uint32_t mask, uint64_t value, unsigned source, const char* what,
                               Location where) {
  Quiet quiet;
  Fiber* self = g.current;
  Warp& warp = self->block->warps[self->warp];
  const unsigned lane = self->lane;
  if (!(mask >> lane & 1)) fail(std::string(what) + ": the calling lane is not in its mask", where);
  warp.mask[lane] = mask;
  warp.op[lane] = op;
  warp.value[lane] = value;
  warp.source[lane] = uint8_t(source);
  warp.fiber[lane] = self;
  warp.arrived |= 1u << lane;
  void* edge = warp.edge.of(warp.generation);
  if (op == WarpOp::sync) release(edge);
  if ((warp.arrived & mask) == mask) {
    for (uint32_t left = mask; left; left &= left - 1) {
      const int other = std::countr_zero(left);
      if (warp.mask[other] != mask) fail(std::string(what) + ": lanes passed different masks", where);
      if (warp.op[other] != op) fail(std::string(what) + ": lanes of one mask are in different operations", where);
    }
    warp.generation++;
    if (op == WarpOp::collective) {
      void* all[32];
      for (int i = 0; i < 32; i++) all[i] = reinterpret_cast<void*>(warp.value[i]);
      warp.work(all);
    }
    complete(warp, mask, what, where);
  }
  wait_for(what, where);
  if (op == WarpOp::sync) acquire(edge);
  return warp.result[lane];
}

// An instruction that all 32 lanes execute together: `work` gets what each of them brings, and leaves each lane's
// result there. It runs once, when the last lane has arrived.
inline void warp_collective(void* mine, void (*work)(void* const (&lanes)[32]), const char* what,
                            Location where = Location::current()) {
  Quiet quiet;
  g.current->block->warps[g.current->warp].work = work;
  warp_operation(WarpOp::collective, 0xffffffffu, reinterpret_cast<uint64_t>(mine), 0, what, where);
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* what, Location where) {
  return from_bits<T>(warp_operation(WarpOp::shuffle, mask, to_bits(value), source, what, where));
}

}  // namespace cudasim
