// Fibers: how one CUDA thread stops and another goes on, and in which order.
#pragma once
#include <algorithm>
#include <cstring>

#include "sanitizers.h"
#include "shared_memory.h"
#include "state.h"

#if !defined(__x86_64__)
#error "cudasim: add a switch of stacks for this architecture"
#endif

// Saves the callee-saved registers on the stack that is left, and takes up those of the other (System V ABI). It is
// assembly on file level because gcc's interprocedural analysis does not see that a C++ function does this. Weak:
// every object file has one.
extern "C" void cudasim_swap_stack(void** save, void* load);
__asm__(
    ".text\n.weak cudasim_swap_stack\n.hidden cudasim_swap_stack\n.type cudasim_swap_stack,@function\n"
    "cudasim_swap_stack:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size cudasim_swap_stack,.-cudasim_swap_stack\n");

namespace cudasim {

[[noreturn]] inline void fail(const std::string& message, Location where = Location::current()) {
  std::string text = message + " at " + where.file_name() + ":" + std::to_string(where.line());
  if (g.current) {
    const uint3 block = g.current->block->index;
    text += " (kernel " + std::string(g.config.name) + ", block " + std::to_string(block.x) + "," +
            std::to_string(block.y) + "," + std::to_string(block.z) + ", thread " + std::to_string(g.current->linear) +
            ")";
  }
  throw Error(text);
}

[[noreturn]] inline void fiber_main();

// A stack on which cudasim_swap_stack "returns" into fiber_main.
inline void prepare(Fiber* fiber, size_t number) {
  const size_t colour = number % 64 * 64;  // else every stack would start in the same cache set
  void** top = reinterpret_cast<void**>(fiber->stack + kStackBytes - colour);
  top -= 2;  // the stack pointer is 8 below a multiple of 16 on entry
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int registers = 0; registers < 6; registers++) *--top = nullptr;
  fiber->stack_pointer = top;
}

inline void switch_to(Fiber* from, Fiber* to) {  // null: the thread that called launch()
  if (from == to) return;
  void** save = from ? &from->stack_pointer : &g.main_stack_pointer;
  void* load = to ? to->stack_pointer : g.main_stack_pointer;
  g.current = to;
  if (to) {
    g.thread_index = to->thread;
    g.block_index = to->block->index;
  }
#if CUDASIM_ASAN
  __sanitizer_start_switch_fiber(from ? &from->fake_stack : &g.main_fake_stack, to ? to->stack : g.main_stack,
                                 to ? kStackBytes : g.main_stack_bytes);
#endif
#if CUDASIM_TSAN
  __tsan_switch_to_fiber(to ? to->tsan : g.main_tsan, 1 /* no order implied */);
#endif
  cudasim_swap_stack(save, load);
#if CUDASIM_ASAN
  __sanitizer_finish_switch_fiber(from ? from->fake_stack : g.main_fake_stack, nullptr, nullptr);
#endif
}

inline Fiber* take_ready() { return g.next_ready < g.ready.size() ? g.ready[g.next_ready++] : nullptr; }

// Lets these fibers run, in the order that the options ask for.
inline void make_ready(Fiber** fibers, size_t count) {
  const auto sort = [&](auto before) {
    if (!std::is_sorted(fibers, fibers + count, before)) std::sort(fibers, fibers + count, before);
  };
  switch (options().order) {
    case Order::forward:
      sort([](const Fiber* a, const Fiber* b) { return a->rank < b->rank; });
      break;
    case Order::reverse:
      sort([](const Fiber* a, const Fiber* b) { return a->rank > b->rank; });
      break;
    case Order::random:
      std::shuffle(fibers, fibers + count, g.random);
      break;
  }
  if (g.next_ready == g.ready.size()) {
    g.ready.clear();
    g.next_ready = 0;
  }
  g.ready.insert(g.ready.end(), fibers, fibers + count);
}

struct Unwind {};  // thrown through blocked threads, to free what they hold, after an error elsewhere
inline bool unwinding() { return g.error || !g.deadlock.empty(); }

inline void wait_for(const char* what, Location where) {
  Fiber* self = g.current;
  self->waits_for = what;
  self->where = where;
  switch_to(self, take_ready());
  self->waits_for = nullptr;
  if (unwinding()) throw Unwind{};
}

// A fiber never ends (the sanitizers keep books about its stack): one round of this loop for each CUDA thread it is.
[[noreturn]] inline void fiber_main() {
#if CUDASIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  ignore_accesses();
  for (;;) {
    Fiber* self = g.current;
    try {
      if (!unwinding()) {
        acquire(&launch_edge);
        watch_accesses();
        g.invoke(g.argument);
        ignore_accesses();
      }
    } catch (const Unwind&) {
    } catch (...) {
      if (!g.error) g.error = std::current_exception();
    }
    self->done = true;
    g.alive--;
    release(self->block->exit.of(0));
    if (--self->block->alive == 0) give_up_shared(*self->block);
    release(&end_edge);
    switch_to(self, take_ready());
  }
}

}  // namespace cudasim
