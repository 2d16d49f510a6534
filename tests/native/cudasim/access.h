// What csrc/cuda/common/port.h calls at every access to global memory.
#pragma once
#include <cstdint>

#include "counters.h"
#include "fibers.h"

namespace cudasim {

inline void count_access(Traffic& traffic, const void* p, size_t bytes, const char* what, Location where) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (address % bytes)
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes at a misaligned address", where);
  traffic.add(bytes);
  if (options_now.count_sectors) {
    Quiet quiet;
    for (uintptr_t sector = address / 32; sector <= (address + bytes - 1) / 32; sector++)
      traffic.sectors.insert(sector);
  }
}
inline void count_load(const void* p, size_t bytes, Location where = Location::current()) {
  count_access(counters_now.current->loads, p, bytes, "load", where);
}
inline void count_store(const void* p, size_t bytes, Location where = Location::current()) {
  count_access(counters_now.current->stores, p, bytes, "store", where);
}

}  // namespace cudasim
