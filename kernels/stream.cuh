/*
 * Loads and stores of bytes that are touched once. They do not allocate in L1, where they would push out
 * the tables that are read for every vector. Never the non-coherent path (.nc): the host or another kernel
 * may write near these bytes while the kernel runs. `volatile` keeps the loads of a batch ahead of its stores.
 *
 * host/shim.h has the same functions for the host compiler.
 */
#pragma once

#include <stdint.h>

#ifndef KV_HOST_SHIM

__device__ __forceinline__ void kv_load(uint4 &value, uint64_t address)
{
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address)
                 : "memory");
}

__device__ __forceinline__ void kv_load(uint64_t &value, uint64_t address)
{
    asm volatile("ld.global.L1::no_allocate.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
}

__device__ __forceinline__ void kv_load(uint32_t &value, uint64_t address)
{
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
}

__device__ __forceinline__ void kv_load(uint16_t &value, uint64_t address)
{
    asm volatile("ld.global.L1::no_allocate.u16 %0, [%1];" : "=h"(value) : "l"(address) : "memory");
}

/* PTX has no 8-bit registers for asm operands; a load may widen. */
__device__ __forceinline__ void kv_load(uint8_t &value, uint64_t address)
{
    uint32_t wide;
    asm volatile("ld.global.L1::no_allocate.u8 %0, [%1];" : "=r"(wide) : "l"(address) : "memory");
    value = static_cast<uint8_t>(wide);
}

__device__ __forceinline__ void kv_store(uint64_t address, uint4 value)
{
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

__device__ __forceinline__ void kv_store(uint64_t address, uint64_t value)
{
    asm volatile("st.global.L1::no_allocate.u64 [%0], %1;" : : "l"(address), "l"(value) : "memory");
}

__device__ __forceinline__ void kv_store(uint64_t address, uint32_t value)
{
    asm volatile("st.global.L1::no_allocate.u32 [%0], %1;" : : "l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void kv_store(uint64_t address, uint16_t value)
{
    asm volatile("st.global.L1::no_allocate.u16 [%0], %1;" : : "l"(address), "h"(value) : "memory");
}

__device__ __forceinline__ void kv_store(uint64_t address, uint8_t value)
{
    asm volatile("st.global.L1::no_allocate.u8 [%0], %1;" : : "l"(address), "r"(static_cast<uint32_t>(value)) : "memory");
}

#endif
