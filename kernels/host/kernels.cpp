/*
 * The kernels as a host library, built from the very .cu files that nvcc compiles:
 *
 *   c++ -std=c++17 -O2 -shared -fPIC -Ikernels kernels/host/kernels.cpp -o libkv_host_kernels.so
 */
#include "shim.h"

#include "../bulk.cu"
#include "../copy.cu"
#include "../digest.cu"
#include "../gemm.cu"
#include "../zero.cu"

extern "C" __attribute__((visibility("default"))) const kv_host_kernel *kv_host_find(const char *name)
{
    static const kv_host_kernel kernels[] = {
        kv_shim::make_kernel<kv_copy_args, kv_copy>("kv_copy"),
        kv_shim::make_kernel<kv_copy_args, kv_copy_bulk>("kv_copy_bulk"),
        kv_shim::make_kernel<kv_digest_args, kv_digest_blocks>("kv_digest_blocks"),
        kv_shim::make_kernel<kv_gemm_args, kv_gemm>("kv_gemm"),
        kv_shim::make_kernel<kv_zero_args, kv_zero>("kv_zero"),
    };
    for (const kv_host_kernel &kernel : kernels) {
        if (strcmp(kernel.name, name) == 0) {
            return &kernel;
        }
    }
    return nullptr;
}

extern "C" __attribute__((visibility("default"))) void kv_host_seed(uint64_t seed) { kv_shim::seed() = seed; }
