/*
 * Fibers: one stack for each CUDA thread that waits at a barrier. A thread that never waits gives its stack
 * to the next one, so a kernel without barriers runs on one stack.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace kv_shim {

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t GUARD_BYTES = 4 << 10; /* below every stack: an overflow faults */

/* A point of execution that can be left and entered again. */
struct Context {
#if defined(__x86_64__)
    void *stack_pointer = nullptr;
#else
    ucontext_t state = {};
#endif
    char *stack = nullptr;     /* lowest byte; nullptr for the stack of the caller of run() */
    size_t stack_bytes = 0;
    void *asan_stack = nullptr;
};

#if defined(__x86_64__)
/* Pushes what a called function must preserve, leaves the stack pointer in *leave, goes on at `enter`. */
extern "C" __attribute__((visibility("hidden"))) void kv_shim_switch(void **leave, void *enter);
asm(R"(
    .text
    .hidden kv_shim_switch
    .globl kv_shim_switch
    .type kv_shim_switch, @function
kv_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size kv_shim_switch, . - kv_shim_switch
)");
#endif

inline void switch_context(Context &leave, Context &enter, bool leave_for_good)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(leave_for_good ? nullptr : &leave.asan_stack, enter.stack, enter.stack_bytes);
#else
    (void)leave_for_good;
#endif
#if defined(__x86_64__)
    kv_shim_switch(&leave.stack_pointer, enter.stack_pointer);
#else
    swapcontext(&leave.state, &enter.state);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(leave.asan_stack, nullptr, nullptr);
#endif
}

/* First switch into a fiber ends here in `entry`, which must not return. */
inline void prepare(Context &context, char *stack, void (*entry)())
{
    context.stack = stack;
    context.stack_bytes = STACK_BYTES;
    context.asan_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    /* The last fiber on it left its frames without returning from them. */
    __asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
#if defined(__x86_64__)
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES);
    *--top = nullptr; /* as if `entry` had been called: 16-byte aligned but for a return address */
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; ++i) {
        *--top = nullptr;
    }
    context.stack_pointer = top;
#else
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = STACK_BYTES;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
#endif
}

/* Stacks not in use. They are kept until the process ends. */
inline std::vector<char *> &free_stacks()
{
    static std::vector<char *> *stacks = new std::vector<char *>;
    return *stacks;
}

inline char *take_stack()
{
    std::vector<char *> &stacks = free_stacks();
    if (!stacks.empty()) {
        char *stack = stacks.back();
        stacks.pop_back();
        return stack;
    }
    void *memory = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0) {
        fprintf(stderr, "kv_shim: no memory for a fiber's stack\n");
        abort();
    }
    return static_cast<char *>(memory) + GUARD_BYTES;
}

} // namespace kv_shim
