/*
 * kv_zero: overwrites blocks with zeros, for erasing. Stores only, so nothing bounds it but the memory.
 */
#include "stream.cuh"
#include "walk.cuh"

template <typename Vector>
__device__ __forceinline__ void kv_zero_blocks(const kv_zero_args &args, kv_block *tile)
{
    kv_for_tiles(tile, args.blocks, args.nest, args.num_blocks, [&](uint32_t first, uint32_t begin, uint32_t end) {
        for (uint32_t n = begin + threadIdx.x; n < end; n += blockDim.x) {
            const kv_position at = kv_locate<0>(args.nest, n);
            kv_store(kv_address<0>(args.dst, args.nest, at, tile[at.block - first].dst), Vector{});
        }
    });
}

extern "C" __global__ void __launch_bounds__(1024) kv_zero(const __grid_constant__ kv_zero_args args)
{
    __shared__ kv_block tile[KV_TILE_BLOCKS];
    switch (args.nest.vector_bytes) {
    case 16: kv_zero_blocks<uint4>(args, tile); break;
    case 8: kv_zero_blocks<uint64_t>(args, tile); break;
    case 4: kv_zero_blocks<uint32_t>(args, tile); break;
    case 2: kv_zero_blocks<uint16_t>(args, tile); break;
    case 1: kv_zero_blocks<uint8_t>(args, tile); break;
    }
    /* The blocks may be host memory that a processor reads as soon as the launch is seen to end. */
    __threadfence_system();
}
