// What the sanitizers must be told about fibers.
//
// AddressSanitizer keeps one (fake) stack a thread and must hear of every switch to another one.
//
// ThreadSanitizer sees every CUDA thread as a thread of its own (its fiber interface) and learns of order only from
// release() and acquire() below: at barriers, __syncwarp, fences and the edges of a launch. It must not see the
// scheduler, whose data all fibers share without locks: scheduler code stands under a Quiet.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDASIM_ASAN 1
#else
#define CUDASIM_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {  // in libtsan of gcc, but not in its header
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_write_range(void* address, unsigned long size);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define CUDASIM_TSAN 1
#else
#define CUDASIM_TSAN 0
#endif

namespace cudasim {

inline void ignore_accesses() {
#if CUDASIM_TSAN
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}
inline void watch_accesses() {
#if CUDASIM_TSAN
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}

struct Quiet {
  Quiet() { ignore_accesses(); }
  ~Quiet() { watch_accesses(); }
};

// An order between threads: everything before release(p) comes before everything after a later acquire(p).
inline void release([[maybe_unused]] void* p) {
#if CUDASIM_TSAN
  __tsan_release(p);
#endif
}
inline void acquire([[maybe_unused]] void* p) {
#if CUDASIM_TSAN
  __tsan_acquire(p);
#endif
}

// Any access to this memory that is not ordered before now is a race.
inline void pretend_write([[maybe_unused]] void* p, [[maybe_unused]] size_t size) {
#if CUDASIM_TSAN
  watch_accesses();
  __tsan_write_range(p, size);
  ignore_accesses();
#endif
}

inline char launch_edge, end_edge, fence_edge;  // addresses only

}  // namespace cudasim
