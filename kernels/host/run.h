/*
 * Runs the CTAs of a launch, one after another, on fibers. shim.h says what may be relied on.
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <vector>

#include "fiber.h"

#define KV_SHIM_POISON 0xA5

extern "C" {
/* Bounds of the section that holds __shared__ variables, from the linker. Hidden: another library may have such a section too. */
extern char __start_kv_shared[] __attribute__((visibility("hidden")));
extern char __stop_kv_shared[] __attribute__((visibility("hidden")));
}

namespace kv_shim {

struct Index {
    uint32_t x;
};

enum class State { fresh, ready, at_block_barrier, at_warp_barrier, polling, ended };

/* Where in the source a thread waits. */
struct Site {
    const char *file = "";
    int line = 0;
    bool operator==(const Site &other) const { return line == other.line && strcmp(file, other.file) == 0; }
};

struct Thread {
    Context context;
    State state = State::fresh;
    Site site;
    uint32_t warp_mask = 0;
    uint64_t offered = 0; /* its value in the shuffle under way */
};

/* The launch under way. There is one at a time. */
struct Launch {
    const char *kernel = "";
    Index grid = {}, block = {}, block_index = {}, thread_index = {};
    std::function<void()> body;
    std::vector<Thread> threads;
    Context scheduler;
    unsigned char *dynamic_shared = nullptr;
    uint32_t dynamic_shared_bytes = 0;
    uint64_t random = 0;
    bool progress = false; /* something happened that a polling thread may wait for */
};

inline Launch &launch()
{
    static Launch value;
    return value;
}

inline uint64_t &seed()
{
    static uint64_t value = 0;
    return value;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "kv_shim: %s, CTA %u: ", launch().kernel, launch().block_index.x);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

/* splitmix64 (Steele, Lea, Flood, 2014). */
inline uint64_t next_random(uint64_t &state)
{
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

inline void shuffle_order(std::vector<uint32_t> &order)
{
    if (seed() == 0) {
        return;
    }
    for (size_t i = order.size(); i > 1; --i) {
        std::swap(order[i - 1], order[next_random(launch().random) % i]);
    }
}

inline Thread &current() { return launch().threads[launch().thread_index.x]; }

/* Leaves the thread until the scheduler takes it up again. */
inline void wait(State state, Site site)
{
    Thread &me = current();
    me.state = state;
    me.site = site;
    switch_context(me.context, launch().scheduler, false);
}

inline void thread_main()
{
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    launch().scheduler.stack = const_cast<char *>(static_cast<const char *>(bottom));
    launch().scheduler.stack_bytes = bytes;
#endif
    launch().body();
    Thread &me = current();
    me.state = State::ended;
    switch_context(me.context, launch().scheduler, true);
}

inline void run_thread(uint32_t index)
{
    Launch &l = launch();
    Thread &thread = l.threads[index];
    if (thread.state == State::fresh) {
        prepare(thread.context, take_stack(), thread_main);
    }
    l.thread_index = {index};
    thread.state = State::ready;
    switch_context(l.scheduler, thread.context, false);
    if (thread.state == State::ended) {
        free_stacks().push_back(thread.context.stack);
    }
    l.progress |= thread.state != State::polling;
}

/* Lets go the barriers of a warp that all lanes they name have reached. */
inline void release_warp(uint32_t warp)
{
    std::vector<Thread> &threads = launch().threads;
    const size_t first = static_cast<size_t>(warp) * 32;
    const size_t end = std::min(first + 32, threads.size());
    for (size_t i = first; i < end; ++i) {
        if (threads[i].state != State::at_warp_barrier) {
            continue;
        }
        const uint32_t mask = threads[i].warp_mask;
        bool all = true;
        for (size_t lane = first; lane < end; ++lane) {
            const Thread &thread = threads[lane];
            if ((mask >> (lane - first) & 1) == 0 || thread.state == State::ended) {
                continue;
            }
            all &= thread.state == State::at_warp_barrier && thread.warp_mask == mask && thread.site == threads[i].site;
        }
        for (size_t lane = first; all && lane < end; ++lane) {
            if ((mask >> (lane - first) & 1) != 0 && threads[lane].state != State::ended) {
                threads[lane].state = State::ready;
            }
        }
    }
}

/* Lets go the barrier of the CTA if all threads have reached it. */
inline bool release_block()
{
    std::vector<Thread> &threads = launch().threads;
    const Thread *first = nullptr;
    size_t waiting = 0, ended = 0;
    for (const Thread &thread : threads) {
        ended += thread.state == State::ended;
        if (thread.state != State::at_block_barrier) {
            continue;
        }
        ++waiting;
        if (first == nullptr) {
            first = &thread;
        } else if (!(thread.site == first->site)) {
            fail("threads of one CTA wait at different barriers: %s:%d and %s:%d", first->site.file, first->site.line,
                 thread.site.file, thread.site.line);
        }
    }
    if (waiting == 0 || waiting + ended != threads.size()) {
        return false;
    }
    if (ended != 0) {
        fail("__syncthreads at %s:%d is reached by %zu of %zu threads, the others ended", first->site.file,
             first->site.line, waiting, threads.size());
    }
    for (Thread &thread : threads) {
        thread.state = State::ready;
    }
    return true;
}

[[noreturn]] inline void fail_deadlock()
{
    const Thread *stuck = nullptr;
    size_t block = 0, warp = 0, polling = 0;
    for (const Thread &thread : launch().threads) {
        block += thread.state == State::at_block_barrier;
        warp += thread.state == State::at_warp_barrier;
        polling += thread.state == State::polling;
        if (thread.state != State::ended) {
            stuck = &thread;
        }
    }
    fail("deadlock: %zu threads at __syncthreads, %zu at a warp barrier, %zu at an mbarrier; one at %s:%d", block, warp,
         polling, stuck->site.file, stuck->site.line);
}

/* Hooks of async.h. */
void start_async(uint32_t threads);
void end_async();

/* Runs each thread of a warp that can go on, in any order. False if there is none. */
inline bool run_warp(uint32_t warp, bool polling)
{
    Launch &l = launch();
    std::vector<uint32_t> order;
    for (uint32_t i = warp * 32; i < l.block.x && i < warp * 32 + 32; ++i) {
        const State state = l.threads[i].state;
        if (state == State::fresh || state == State::ready || (polling && state == State::polling)) {
            order.push_back(i);
        }
    }
    shuffle_order(order);
    for (uint32_t i : order) {
        run_thread(i);
    }
    release_warp(warp);
    return !order.empty();
}

/*
 * Runs a CTA. One warp goes on until it waits for others, then the next: between two barriers a warp may be as
 * far ahead of another as it can get. Which goes first changes with every barrier, and now and then between.
 */
inline void run_block()
{
    Launch &l = launch();
    l.threads.assign(l.block.x, Thread());
    memset(__start_kv_shared, KV_SHIM_POISON, static_cast<size_t>(__stop_kv_shared - __start_kv_shared));
    start_async(l.block.x);
    std::vector<uint32_t> warps((l.block.x + 31) / 32);
    for (uint32_t i = 0; i < warps.size(); ++i) {
        warps[i] = i;
    }
    shuffle_order(warps);
    for (;;) {
        if (seed() != 0 && next_random(l.random) % 16 == 0) {
            shuffle_order(warps);
        }
        bool ran = false;
        for (size_t i = 0; i < warps.size() && !ran; ++i) {
            ran = run_warp(warps[i], false);
        }
        if (ran) {
            continue;
        }
        /* All wait or ended. */
        if (release_block()) {
            shuffle_order(warps);
            continue;
        }
        l.progress = false;
        for (uint32_t warp : warps) {
            ran |= run_warp(warp, true);
        }
        if (!l.progress) {
            break;
        }
    }
    for (const Thread &thread : l.threads) {
        if (thread.state != State::ended) {
            fail_deadlock();
        }
    }
    end_async();
}

/* Bytes after dynamic shared memory that must keep their value. AddressSanitizer has its own. */
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t FENCE_BYTES = 0;
#else
constexpr size_t FENCE_BYTES = 256;
#endif
constexpr unsigned char FENCE = 0x5C;

inline void run_grid(const char *kernel, uint32_t grid, uint32_t block, uint32_t shared_bytes, std::function<void()> body)
{
    static std::mutex one_launch;
    const std::lock_guard<std::mutex> guard(one_launch);
    Launch &l = launch();
    l.kernel = kernel;
    l.grid = {grid};
    l.block = {block};
    l.block_index = {0};
    l.body = std::move(body);
    l.random = seed();
    if (grid == 0 || block == 0 || block > 1024) {
        fail("launched with %u CTAs of %u threads", grid, block);
    }
    void *shared = nullptr;
    if (posix_memalign(&shared, 128, shared_bytes + FENCE_BYTES + 1) != 0) {
        fail("no memory for %u bytes of dynamic shared memory", shared_bytes);
    }
    l.dynamic_shared = static_cast<unsigned char *>(shared);
    l.dynamic_shared_bytes = shared_bytes;
    std::vector<uint32_t> order(grid);
    for (uint32_t i = 0; i < grid; ++i) {
        order[i] = i;
    }
    shuffle_order(order);
    for (uint32_t i : order) {
        l.block_index = {i};
        memset(shared, KV_SHIM_POISON, shared_bytes);
        memset(l.dynamic_shared + shared_bytes, FENCE, FENCE_BYTES);
        run_block();
        for (size_t j = 0; j < FENCE_BYTES; ++j) {
            if (l.dynamic_shared[shared_bytes + j] != FENCE) {
                fail("a write %zu bytes past the %u bytes of dynamic shared memory", j, shared_bytes);
            }
        }
    }
    free(shared);
}

} // namespace kv_shim
