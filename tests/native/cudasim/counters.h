// What the launches since the last reset did, by kernel name: bytes that went through csrc/cuda's access functions
// (which call count_load and count_store of access.h), how wide the accesses were, and each launch's configuration.
// These prove the byte formulas, and tests ask them which kernel ran.
//
// `bytes` counts every access, so data that is read twice counts twice, whether or not a GPU's cache would have it.
// `sectors` counts distinct 32-byte sectors of memory, what a perfect cache would move; only where
// Options::count_sectors asks for it, because it makes a launch several times slower.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_set>
#include <vector>

namespace cudasim {

struct Traffic {
  uint64_t bytes = 0;
  uint64_t by_width[8] = {};  // accesses of 1, 2, 4, ... 128 bytes
  std::unordered_set<uintptr_t> sectors;

  void add(size_t width) {
#if defined(__SANITIZE_THREAD__)
    __atomic_fetch_add(&bytes, width, __ATOMIC_RELAXED);  // relaxed: orders nothing that the kernel left unordered
    __atomic_fetch_add(&by_width[std::countr_zero(width) & 7], 1, __ATOMIC_RELAXED);
#else
    bytes += width;
    by_width[std::countr_zero(width) & 7]++;
#endif
  }
};

struct KernelCounters {
  uint64_t launches = 0;
  Traffic loads, stores;
};

struct LaunchRecord {
  std::string name;
  unsigned grid[3], block[3];
  unsigned cluster;
  size_t smem;
  bool cooperative;
};

struct Counters {
  static constexpr size_t kMostRecords = 1 << 16;
  std::map<std::string, KernelCounters> kernels;
  std::vector<LaunchRecord> launches;  // the first kMostRecords
  KernelCounters outside;              // an access function called by host code
  KernelCounters* current = &outside;  // of the kernel that runs now
};

inline Counters counters_now;

inline void reset_counters() {
  counters_now.kernels.clear();
  counters_now.launches.clear();
  counters_now.outside = {};
  counters_now.current = &counters_now.outside;
}

namespace detail {

inline std::string json_string(const std::string& text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

inline std::string json_traffic(const Traffic& traffic) {
  std::string text = "{\"bytes\": " + std::to_string(traffic.bytes) + ", \"by_width\": {";
  const char* comma = "";
  for (int i = 0; i < 8; i++) {
    if (!traffic.by_width[i]) continue;
    text += comma + json_string(std::to_string(1 << i)) + ": " + std::to_string(traffic.by_width[i]);
    comma = ", ";
  }
  return text + "}, \"sectors\": " + std::to_string(traffic.sectors.size()) + "}";
}

inline std::string json_dim(const unsigned (&dim)[3]) {
  return "[" + std::to_string(dim[0]) + ", " + std::to_string(dim[1]) + ", " + std::to_string(dim[2]) + "]";
}

}  // namespace detail

// {"kernels": {name: {"launches", "loads", "stores"}}, "launches": [{"name", "grid", "block", ...}]}
inline std::string counters_as_json() {
  using namespace detail;
  std::string text = "{\"kernels\": {";
  const char* comma = "";
  for (const auto& [name, kernel] : counters_now.kernels) {
    text += comma + json_string(name) + ": {\"launches\": " + std::to_string(kernel.launches) +
            ", \"loads\": " + json_traffic(kernel.loads) + ", \"stores\": " + json_traffic(kernel.stores) + "}";
    comma = ", ";
  }
  text += "}, \"launches\": [";
  comma = "";
  for (const auto& launch : counters_now.launches) {
    text += comma;
    text += "{\"name\": " + json_string(launch.name) + ", \"grid\": " + json_dim(launch.grid) +
            ", \"block\": " + json_dim(launch.block) + ", \"cluster\": " + std::to_string(launch.cluster) +
            ", \"smem\": " + std::to_string(launch.smem) +
            ", \"cooperative\": " + (launch.cooperative ? "true" : "false") + "}";
    comma = ", ";
  }
  return text + "]}";
}

}  // namespace cudasim
