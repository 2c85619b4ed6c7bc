/*
 * From the flat index of a vector to its place on each side, and the share of a launch that a CTA takes.
 *
 *   all vectors of the launch   0 ─────────────────────────────────────────► num_blocks * block.divisor
 *   shares, one per CTA         [──────────────)[──────────────)[──────────)
 *   tiles of a share            [────)[────)[──)   blocks whose kv_block lie in shared memory together
 *
 * A share is contiguous, so a CTA needs the kv_block of few blocks; it fetches them a tile at a time, all
 * at once. They may lie in host memory: that is one round trip of the link per tile.
 */
#pragma once

#include "divisor.cuh"

/* Blocks of a tile. 16 KiB of shared memory; a tile of blocks of 4 KiB is 4 MiB of work. */
constexpr uint32_t KV_TILE_BLOCKS = 1024;

/* Where a vector lies in the nest. */
struct kv_position {
    uint32_t block;
    uint32_t index[KV_LEVELS];
    uint32_t vector; /* in the run */
};

/*
 * The outermost level that a launch uses: those outside it have one index. Every level costs about ten
 * instructions for each vector, so the hot kernels are compiled for a nest of two levels beside the full one.
 */
__device__ __forceinline__ bool kv_has_two_levels(const kv_nest &nest)
{
    return nest.count[0].divisor == 1 && nest.count[1].divisor == 1;
}

template <int OUTER>
__device__ __forceinline__ kv_position kv_locate(const kv_nest &nest, uint32_t n)
{
    kv_position at = {};
    const kv_quotient block = kv_divide(n, nest.block);
    const kv_quotient run = kv_divide(block.remainder, nest.run);
    at.block = block.quotient;
    at.vector = run.remainder;
    uint32_t rest = run.quotient + nest.first_run;
#pragma unroll
    for (int level = KV_LEVELS - 1; level > OUTER; --level) {
        const kv_quotient part = kv_divide(rest, nest.count[level]);
        at.index[level] = part.remainder;
        rest = part.quotient;
    }
    at.index[OUTER] = rest;
    return at;
}

/* Address on one side; `offset` is that side's of the vector's kv_block. */
template <int OUTER>
__device__ __forceinline__ uint64_t kv_address(const kv_view &view, const kv_nest &nest, const kv_position &at,
                                               uint64_t offset)
{
    uint64_t address = offset + static_cast<uint64_t>(at.vector) * nest.vector_bytes;
#pragma unroll
    for (int level = OUTER; level < KV_LEVELS; ++level) {
        address += at.index[level] * view.step[level];
    }
    if (view.buffers != 0) { /* the same way for every thread of the launch */
        uint32_t buffer = 0;
#pragma unroll
        for (int level = OUTER; level < KV_LEVELS; ++level) {
            buffer += at.index[level] * view.buffer_step[level];
        }
        /* Nobody writes the table while a kernel runs. */
        address += __ldg(reinterpret_cast<const uint64_t *>(view.buffers) + buffer);
    }
    return address;
}

struct kv_share {
    uint32_t begin;
    uint32_t end;
};

/* This CTA's share of `total` things, a whole number of `grain` but for the last. */
__device__ __forceinline__ kv_share kv_share_of(uint32_t total, uint32_t grain)
{
    const uint64_t each = (static_cast<uint64_t>(total) + gridDim.x - 1) / gridDim.x;
    const uint64_t size = (each + grain - 1) / grain * grain;
    const uint64_t begin = size * blockIdx.x;
    const uint64_t end = begin + size;
    return {static_cast<uint32_t>(begin < total ? begin : total), static_cast<uint32_t>(end < total ? end : total)};
}

/* Copies `count` kv_block, from `first` on, into `tile`; `thread` is one of `threads` that do it. */
__device__ __forceinline__ void kv_fetch_blocks(kv_block *tile, uint64_t blocks, uint32_t first, uint32_t count,
                                                uint32_t thread, uint32_t threads)
{
    const kv_block *from = reinterpret_cast<const kv_block *>(blocks) + first;
    for (uint32_t i = thread; i < count; i += threads) {
        tile[i] = from[i];
    }
}

/*
 * Calls work(first_block, begin, end) for every tile of this CTA's share, with all threads of the CTA and
 * with the tile's blocks, from first_block on, in `tile`. [begin, end) are vectors.
 */
template <typename Work>
__device__ __forceinline__ void kv_for_tiles(kv_block *tile, uint64_t blocks, const kv_nest &nest,
                                             uint32_t num_blocks, Work work)
{
    /* 32 vectors: no CTA starts inside a line of 512 bytes that another ends in. */
    const kv_share share = kv_share_of(num_blocks * nest.block.divisor, 32);
    uint32_t begin = share.begin;
    while (begin < share.end) {
        const uint32_t first = kv_divide(begin, nest.block).quotient;
        const uint32_t past = kv_divide(share.end - 1, nest.block).quotient + 1;
        const uint32_t count = past - first < KV_TILE_BLOCKS ? past - first : KV_TILE_BLOCKS;
        const uint32_t tile_end = (first + count) * nest.block.divisor;
        const uint32_t end = tile_end < share.end ? tile_end : share.end;
        __syncthreads(); /* nobody reads the last tile any more */
        kv_fetch_blocks(tile, blocks, first, count, threadIdx.x, blockDim.x);
        __syncthreads();
        work(first, begin, end);
        begin = end;
    }
}
