/*
 * How a host program calls a kernel that was compiled with the host compiler (see shim.h). The calling
 * convention is that of cuLaunchKernel: `params[0]` points at the kernel's one argument struct.
 */
#ifndef KV_HOST_H
#define KV_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kv_host_kernel {
    const char *name;      /* as in the PTX, for example "kv_copy" */
    size_t arg_bytes;      /* size of its argument struct */
    void (*run)(uint32_t grid_x, uint32_t block_x, uint32_t shared_bytes, void **params);
} kv_host_kernel;

/* The kernel of that name, or NULL. */
const kv_host_kernel *kv_host_find(const char *name);

/* Seed of the order in which the threads of a block run between barriers; 0: in order. */
void kv_host_seed(uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
