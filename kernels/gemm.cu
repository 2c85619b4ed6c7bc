/*
 * kv_gemm: c = a * b in floats, tiled through shared memory. A load that fills the GPU while a benchmark
 * copies beside it; nothing that kvtier needs, and no match for a library.
 *
 * 256 threads; a CTA computes tiles of 128 x 128, a thread 8 x 8 of it. m and n are multiples of 128, k of 16.
 */
#include "kv_kernels.h"

constexpr uint32_t KV_GEMM_TILE = 128;
constexpr uint32_t KV_GEMM_DEPTH = 16;
constexpr uint32_t KV_GEMM_THREADS = 256;
constexpr uint32_t KV_GEMM_EACH = 8; /* rows and columns of a thread, 16 apart */

extern "C" __global__ void __launch_bounds__(256) kv_gemm(const __grid_constant__ kv_gemm_args args)
{
    __shared__ float a_tile[KV_GEMM_DEPTH][KV_GEMM_TILE + 1]; /* transposed; + 1 keeps its stores out of one bank */
    __shared__ float b_tile[KV_GEMM_DEPTH][KV_GEMM_TILE];
    const float *a = reinterpret_cast<const float *>(args.a);
    const float *b = reinterpret_cast<const float *>(args.b);
    float *c = reinterpret_cast<float *>(args.c);
    const uint32_t row = threadIdx.x / 16;
    const uint32_t column = threadIdx.x % 16;
    const uint32_t tiles_across = args.n / KV_GEMM_TILE;
    const uint32_t tiles = args.m / KV_GEMM_TILE * tiles_across;
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint32_t m0 = tile / tiles_across * KV_GEMM_TILE;
        const uint32_t n0 = tile % tiles_across * KV_GEMM_TILE;
        float sum[KV_GEMM_EACH][KV_GEMM_EACH] = {};
        for (uint32_t k0 = 0; k0 < args.k; k0 += KV_GEMM_DEPTH) {
            for (uint32_t i = threadIdx.x; i < KV_GEMM_TILE * KV_GEMM_DEPTH; i += KV_GEMM_THREADS) {
                const uint32_t m = i / KV_GEMM_DEPTH, ka = i % KV_GEMM_DEPTH;
                a_tile[ka][m] = a[static_cast<uint64_t>(m0 + m) * args.k + k0 + ka];
                const uint32_t kb = i / KV_GEMM_TILE, n = i % KV_GEMM_TILE;
                b_tile[kb][n] = b[static_cast<uint64_t>(k0 + kb) * args.n + n0 + n];
            }
            __syncthreads();
#pragma unroll
            for (uint32_t k = 0; k < KV_GEMM_DEPTH; ++k) {
                float left[KV_GEMM_EACH], right[KV_GEMM_EACH];
#pragma unroll
                for (uint32_t i = 0; i < KV_GEMM_EACH; ++i) {
                    left[i] = a_tile[k][row + 16 * i];
                    right[i] = b_tile[k][column + 16 * i];
                }
#pragma unroll
                for (uint32_t i = 0; i < KV_GEMM_EACH; ++i) {
#pragma unroll
                    for (uint32_t j = 0; j < KV_GEMM_EACH; ++j) {
                        sum[i][j] += left[i] * right[j];
                    }
                }
            }
            __syncthreads(); /* nobody reads these tiles any more */
        }
#pragma unroll
        for (uint32_t i = 0; i < KV_GEMM_EACH; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < KV_GEMM_EACH; ++j) {
                c[static_cast<uint64_t>(m0 + row + 16 * i) * args.n + n0 + column + 16 * j] = sum[i][j];
            }
        }
    }
}
