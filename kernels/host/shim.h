/*
 * CUDA's words for the host compiler: runs every (CTA, thread) of a kernel. For tests.
 *
 * CTAs run one after another, and in a CTA warp after warp until each waits for others, in an order that the seed
 * chooses anew all the time. A thread runs until it waits (at a barrier, a shuffle, an mbarrier) or ends. So
 * whatever a kernel leaves to chance between two barriers, some seed does the wrong way round.
 *
 * A launch that cannot go on as written ends the process with a message: threads of a CTA at different
 * barriers, a barrier that some threads ended without reaching, a deadlock, a shuffle from a lane that is
 * not there, a write past dynamic shared memory. Shared memory holds KV_SHIM_POISON when a CTA starts.
 *
 * What it does not show: speed, weak memory order, races between CTAs.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kv_host.h"
#include "run.h"

#define KV_HOST_SHIM

#define __global__
#define __device__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
/* In a section of its own, so that all of it can be poisoned. */
#define __shared__ static __attribute__((section("kv_shared"), aligned(16)))
#define KV_DYNAMIC_SHARED(name) unsigned char *const name = kv_shim::launch().dynamic_shared

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

namespace kv_shim {

/* A kernel as kv_host_kernel wants it. */
template <typename Args, void (*KERNEL)(const Args)>
struct Entry {
    static const char *name;
    static void run(uint32_t grid, uint32_t block, uint32_t shared_bytes, void **params)
    {
        Args args;
        memcpy(&args, params[0], sizeof args);
        run_grid(name, grid, block, shared_bytes, [args] { KERNEL(args); });
    }
};
template <typename Args, void (*KERNEL)(const Args)>
const char *Entry<Args, KERNEL>::name = "";

template <typename Args, void (*KERNEL)(const Args)>
kv_host_kernel make_kernel(const char *name)
{
    Entry<Args, KERNEL>::name = name;
    return {name, sizeof(Args), Entry<Args, KERNEL>::run};
}

inline void warp_barrier(uint32_t mask, Site site)
{
    const uint32_t lane = launch().thread_index.x % 32;
    if ((mask >> lane & 1) == 0) {
        fail("lane %u waits at %s:%d with a mask without it", lane, site.file, site.line);
    }
    current().warp_mask = mask;
    wait(State::at_warp_barrier, site);
}

/* The value that `lane` of this warp offers at the same shuffle. */
template <typename T>
T shuffle_from(uint32_t mask, T value, uint32_t lane, Site site)
{
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes here");
    memcpy(&current().offered, &value, sizeof value);
    warp_barrier(mask, site);
    const size_t from = launch().thread_index.x / 32 * 32 + lane % 32;
    if ((mask >> (lane % 32) & 1) == 0 || from >= launch().threads.size() ||
        launch().threads[from].state == State::ended) {
        fail("shuffle at %s:%d from lane %u, which takes no part", site.file, site.line, lane % 32);
    }
    memcpy(&value, &launch().threads[from].offered, sizeof value);
    warp_barrier(mask, site); /* nobody offers its next value before all have read */
    return value;
}

} // namespace kv_shim

#define threadIdx (kv_shim::launch().thread_index)
#define blockIdx (kv_shim::launch().block_index)
#define blockDim (kv_shim::launch().block)
#define gridDim (kv_shim::launch().grid)

#define KV_SHIM_HERE (kv_shim::Site{__FILE__, __LINE__})
#define __syncthreads() kv_shim::wait(kv_shim::State::at_block_barrier, KV_SHIM_HERE)
#define __syncwarp() kv_shim::warp_barrier(~0u, KV_SHIM_HERE)
#define __shfl_sync(mask, value, lane) kv_shim::shuffle_from(mask, value, lane, KV_SHIM_HERE)
#define __shfl_xor_sync(mask, value, bits) kv_shim::shuffle_from(mask, value, (threadIdx.x ^ (bits)) % 32, KV_SHIM_HERE)
#define __trap() kv_shim::fail("__trap at %s:%d", __FILE__, __LINE__)

static inline void __threadfence_system() {}
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
static inline int __popcll(uint64_t value) { return __builtin_popcountll(value); }
template <typename T>
static inline T __ldg(const T *address) { return *address; }

/* The functions of stream.cuh. */
template <typename T>
static inline void kv_load(T &value, uint64_t address) { value = *reinterpret_cast<const T *>(address); }
template <typename T>
static inline void kv_store(uint64_t address, T value) { *reinterpret_cast<T *>(address) = value; }

#include "async.h"
