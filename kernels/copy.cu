/*
 * kv_copy: copies blocks from one view to the other through registers. Works in every direction and for
 * every vector width, on any grid: one or two CTAs keep a PCIe link busy, a CTA per SM keeps HBM busy.
 *
 * What bounds it is bytes in flight. A thread first issues all loads of a batch, then their stores: with
 * 16-byte vectors that is 64 bytes a thread and 64 KiB a CTA of 1024, the most that 64 registers a
 * thread allow.
 */
#include "stream.cuh"
#include "walk.cuh"

/* Vectors that a thread has in flight. */
constexpr uint32_t KV_COPY_BATCH = 4;

/* Copies vectors [begin, end); the tile starts with block `first`. */
template <typename Vector, int OUTER>
__device__ __forceinline__ void kv_copy_vectors(const kv_copy_args &args, const kv_block *tile, uint32_t first,
                                                uint32_t begin, uint32_t end)
{
    for (uint32_t n = begin + threadIdx.x; n < end; n += KV_COPY_BATCH * blockDim.x) {
        Vector value[KV_COPY_BATCH];
        uint64_t dst[KV_COPY_BATCH];
#pragma unroll
        for (uint32_t j = 0; j < KV_COPY_BATCH; ++j) {
            const uint32_t vector = n + j * blockDim.x;
            if (vector < end) {
                const kv_position at = kv_locate<OUTER>(args.nest, vector);
                const kv_block block = tile[at.block - first];
                kv_load(value[j], kv_address<OUTER>(args.src, args.nest, at, block.src));
                dst[j] = kv_address<OUTER>(args.dst, args.nest, at, block.dst);
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < KV_COPY_BATCH; ++j) {
            if (n + j * blockDim.x < end) {
                kv_store(dst[j], value[j]);
            }
        }
    }
}

template <typename Vector, int OUTER>
__device__ __forceinline__ void kv_copy_blocks(const kv_copy_args &args, kv_block *tile)
{
    kv_for_tiles(tile, args.blocks, args.nest, args.num_blocks, [&](uint32_t first, uint32_t begin, uint32_t end) {
        kv_copy_vectors<Vector, OUTER>(args, tile, first, begin, end);
    });
}

extern "C" __global__ void __launch_bounds__(1024) kv_copy(const __grid_constant__ kv_copy_args args)
{
    __shared__ kv_block tile[KV_TILE_BLOCKS];
    switch (args.nest.vector_bytes) {
    case 16:
        if (kv_has_two_levels(args.nest)) {
            kv_copy_blocks<uint4, 2>(args, tile);
        } else {
            kv_copy_blocks<uint4, 0>(args, tile);
        }
        break;
    case 8: kv_copy_blocks<uint64_t, 0>(args, tile); break;
    case 4: kv_copy_blocks<uint32_t, 0>(args, tile); break;
    case 2: kv_copy_blocks<uint16_t, 0>(args, tile); break;
    case 1: kv_copy_blocks<uint8_t, 0>(args, tile); break;
    }
    /* The destination may be host memory that a processor reads as soon as the launch is seen to end. */
    __threadfence_system();
}
