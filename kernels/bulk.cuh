/*
 * Bulk asynchronous copies between global and shared memory, and the mbarriers that tell when they landed
 * (PTX ISA 8.0, sm_90). Addresses and sizes are multiples of 16 bytes.
 *
 * host/async.h has the same functions for the host compiler.
 */
#pragma once

#include <stdint.h>

#ifndef KV_HOST_SHIM

/* Dynamic shared memory of the CTA. */
#define KV_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

__device__ __forceinline__ uint32_t kv_dynamic_shared_bytes()
{
    uint32_t bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}

/* Address in the shared window. */
__device__ __forceinline__ uint32_t kv_shared_address(const void *pointer)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/* An mbarrier whose phases complete with one arrival, and the bytes that it announces. */
__device__ __forceinline__ void kv_barrier_init(uint64_t *barrier)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" : : "r"(kv_shared_address(barrier)) : "memory");
}

/* Lets bulk loads of this thread see the mbarriers that it initialised: they come by the async proxy. */
__device__ __forceinline__ void kv_barrier_init_done()
{
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
}

__device__ __forceinline__ void kv_barrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile("{\n"
                 "    .reg .b64 state;\n"
                 "    mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n"
                 "}"
                 :
                 : "r"(kv_shared_address(barrier)), "r"(bytes)
                 : "memory");
}

/* Waits until the phase of this parity has completed: 0 for the first, third, ..., 1 for the others. */
__device__ __forceinline__ void kv_barrier_wait(uint64_t *barrier, uint32_t parity)
{
    uint32_t done = 0;
    while (done == 0) {
        asm volatile("{\n"
                     "    .reg .pred done;\n"
                     "    mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "    selp.u32 %0, 1, 0, done;\n"
                     "}"
                     : "=r"(done)
                     : "r"(kv_shared_address(barrier)), "r"(parity)
                     : "memory");
    }
}

/* Starts a load that takes its bytes off the mbarrier when it has landed. */
__device__ __forceinline__ void kv_bulk_load(void *to, uint64_t from, uint32_t bytes, uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(kv_shared_address(to)), "l"(from), "r"(bytes), "r"(kv_shared_address(barrier))
                 : "memory");
}

/* Starts a store in the thread's open group. */
__device__ __forceinline__ void kv_bulk_store(uint64_t to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 :
                 : "l"(to), "r"(kv_shared_address(from)), "r"(bytes)
                 : "memory");
}

/* Closes the thread's open group of stores. */
__device__ __forceinline__ void kv_bulk_commit() { asm volatile("cp.async.bulk.commit_group;" : : : "memory"); }

/* Waits until all groups of the thread but its last PENDING have read shared memory. */
template <uint32_t PENDING>
__device__ __forceinline__ void kv_bulk_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" : : "n"(PENDING) : "memory");
}

/* Waits until all groups of the thread are written, and visible to it. */
__device__ __forceinline__ void kv_bulk_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" : : : "memory"); }

#endif
