// Shared memory. Each variable of each block is a heap block of its own, so that AddressSanitizer has its bounds;
// filled with 0xFF (NaN in every float type), so that a read of what nobody wrote shows; aligned to what its type
// asks for and no more, so that a wider access to it is misaligned here as it would be there; given up when its
// block ends, so that a cluster that reads it later is caught.
#pragma once
#include <cstring>
#include <new>

#include "sanitizers.h"
#include "state.h"

namespace cudasim {

[[noreturn]] void fail(const std::string& message, Location where);

inline char dynamic_key;  // an address only

inline char* shared_variable(Block& block, const void* key, size_t size, size_t align,
                             Location where = Location::current()) {
  Quiet quiet;
  for (const auto& variable : block.shared)
    if (variable.key == key) return variable.data;
  block.shared_bytes += size;
  if (key != &dynamic_key) block.static_shared_bytes += size;
  if (block.shared_bytes > options().shared_bytes || block.static_shared_bytes > kStaticSharedBytes)
    fail("too much shared memory: " + std::to_string(block.shared_bytes) + " bytes, " +
             std::to_string(block.static_shared_bytes) + " of them static",
         where);
  const size_t pad = align < 16 ? align : 0;
  void* raw = nullptr;
  if (posix_memalign(&raw, align < 16 ? 16 : align, size + pad)) throw std::bad_alloc();
  std::memset(raw, 0xFF, size + pad);
  block.shared.push_back({key, static_cast<char*>(raw), static_cast<char*>(raw) + pad, size, align});
  return block.shared.back().data;
}

template <class T>
T& static_shared(const void* key) {
  return *reinterpret_cast<T*>(shared_variable(*g.current->block, key, sizeof(T), alignof(T)));
}

template <class T>
T* dyn_shared() {
  return reinterpret_cast<T*>(shared_variable(*g.current->block, &dynamic_key, g.config.smem, 16));
}

// The same variable of another block of the cluster, which is sure to have started only after a cluster.sync().
template <class T>
T* map_shared_rank(T* p, unsigned rank, Location where = Location::current()) {
  Quiet quiet;
  Block& block = *g.current->block;
  if (rank >= block.cluster->blocks.size()) fail("map_shared_rank: no such block in the cluster", where);
  if (rank != block.cluster_rank && block.cluster->barrier.generation == 0)
    fail("map_shared_rank before any cluster.sync(): the other block may not have started", where);
  const char* address = reinterpret_cast<const char*>(p);
  for (const SharedVariable& mine : block.shared)
    if (address >= mine.data && address < mine.data + mine.size) {
      const ptrdiff_t offset = address - mine.data;
      return reinterpret_cast<T*>(shared_variable(*block.cluster->blocks[rank], mine.key, mine.size, mine.align) +
                                  offset);
    }
  fail("map_shared_rank: not an address in this block's shared memory", where);
}

// The last thread of a block has ended.
inline void give_up_shared(Block& block) {
  acquire(block.exit.of(0));
  for (auto& variable : block.shared) {
    pretend_write(variable.data, variable.size);
    std::memset(variable.data, 0xFF, variable.size);
#if CUDASIM_ASAN
    std::free(variable.raw);  // now, so that a later read is a use after free
    variable.raw = nullptr;
#endif
  }
}

// The blocks that were alive together have all ended.
inline void free_shared(Block& block) {
  for (auto& variable : block.shared) {
#if CUDASIM_TSAN
    g.retired.push_back(variable.raw);  // reuse within the launch would look like a race
#else
    std::free(variable.raw);
#endif
  }
  block.shared.clear();
  block.shared_bytes = block.static_shared_bytes = 0;
}

}  // namespace cudasim
