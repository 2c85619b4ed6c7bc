/*
 * kv_digest_blocks: CRC-64/NVME of each block, its runs laid end to end, and its number of nonzero bytes. Proves that
 * what was copied is what was stored, and that what was erased is gone, without moving the bytes to a processor.
 *
 * A CTA takes a block at a time. Thread t of T takes vectors t, t + T, t + 2T, ... and keeps the sum of what it read,
 * multiplied by x^(bits of T vectors) at every step, so each is multiplied by the power that all later ones stand
 * for. The block is thought to begin with so many zero vectors that T divides their number: zeros at the head
 * change no CRC without the inversion of the first 64 bits, and that is done when they are read. At the end
 * thread t multiplies by x^(bits of the T - 1 - t vectors after its last, and 64 more), and all are summed.
 *
 * blockDim.x is a multiple of 32.
 */
#include "crc64.cuh"
#include "stream.cuh"
#include "walk.cuh"

/* Vectors that a thread has in flight. */
constexpr uint32_t KV_DIGEST_BATCH = 4;
/* Blocks whose kv_block are fetched at once. */
constexpr uint32_t KV_DIGEST_TILE = 128;

/* Words of up to 64 bits in a vector. */
template <typename Vector>
constexpr uint32_t KV_WORDS = sizeof(Vector) == 16 ? 2 : 1;

/* Word i of a vector as a polynomial: its last bit is x^0. */
template <typename Vector>
__device__ __forceinline__ uint64_t kv_word(Vector value, uint32_t)
{
    return static_cast<uint64_t>(value) << (64 - 8 * sizeof(Vector));
}
__device__ __forceinline__ uint64_t kv_word(uint4 value, uint32_t i)
{
    return i == 0 ? value.x | static_cast<uint64_t>(value.y) << 32 : value.z | static_cast<uint64_t>(value.w) << 32;
}

__device__ __forceinline__ uint32_t kv_nonzero_bytes(uint64_t word)
{
    constexpr uint64_t LOW = 0x7F7F7F7F7F7F7F7Full;
    /* The top bit of each byte: set if it or one below is. No sum carries into the next byte. */
    return static_cast<uint32_t>(__popcll((((word & LOW) + LOW) | word) & ~LOW));
}

/* What is the same for every block of a launch. */
struct kv_digest_plan {
    const kv_crc_table *step; /* multiplies by x^(bits of a vector of every thread) */
    uint64_t tail;            /* x^(bits after this thread's last vector, and 64) */
    kv_digest *partial;       /* one for each warp */
};

/* Sum over the threads of the CTA, in thread 0. */
__device__ __forceinline__ kv_digest kv_sum(kv_digest mine, kv_digest *partial)
{
#pragma unroll
    for (uint32_t other = 16; other != 0; other /= 2) {
        mine.crc64 ^= __shfl_xor_sync(0xFFFFFFFFu, mine.crc64, other);
        mine.nonzero += __shfl_xor_sync(0xFFFFFFFFu, mine.nonzero, other);
    }
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = mine;
    }
    __syncthreads();
    kv_digest sum = {0, 0};
    if (threadIdx.x == 0) {
        for (uint32_t warp = 0; warp < blockDim.x / 32; ++warp) {
            sum.crc64 ^= partial[warp].crc64;
            sum.nonzero += partial[warp].nonzero;
        }
    }
    __syncthreads(); /* `partial` may be written again */
    return sum;
}

/* Digest of the block whose offset is `offset`, in thread 0. */
template <typename Vector>
__device__ __forceinline__ kv_digest kv_digest_one(const kv_digest_args &args, uint64_t offset, const kv_digest_plan &plan)
{
    const uint32_t vectors = args.nest.block.divisor;
    const uint32_t steps = (vectors + blockDim.x - 1) / blockDim.x;
    const uint32_t missing = steps * blockDim.x - vectors; /* zero vectors at the head */
    uint64_t sum[KV_WORDS<Vector>] = {};
    uint64_t nonzero = 0;
    for (uint32_t step = 0; step < steps; step += KV_DIGEST_BATCH) {
        Vector value[KV_DIGEST_BATCH];
#pragma unroll
        for (uint32_t j = 0; j < KV_DIGEST_BATCH; ++j) {
            const uint32_t padded = (step + j) * blockDim.x + threadIdx.x;
            value[j] = Vector{};
            if (step + j < steps && padded >= missing) {
                const kv_position at = kv_locate<0>(args.nest, padded - missing);
                kv_load(value[j], kv_address<0>(args.src, args.nest, at, offset));
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < KV_DIGEST_BATCH; ++j) {
            if (step + j >= steps) {
                break;
            }
            const uint32_t padded = (step + j) * blockDim.x + threadIdx.x;
            /* The first 8 bytes of the block are inverted. */
            const bool first = padded >= missing && (padded - missing) * sizeof(Vector) < 8;
#pragma unroll
            for (uint32_t i = 0; i < KV_WORDS<Vector>; ++i) {
                const uint64_t word = kv_word(value[j], i);
                nonzero += kv_nonzero_bytes(word);
                const uint64_t inverted = first && i == 0 ? ~0ull << (64 - 8 * (sizeof(Vector) < 8 ? sizeof(Vector) : 8)) : 0;
                sum[i] = kv_crc_multiply(sum[i], *plan.step) ^ word ^ inverted;
            }
        }
    }
    kv_digest mine = {kv_crc_multiply(sum[KV_WORDS<Vector> - 1], plan.tail), nonzero};
    if (KV_WORDS<Vector> == 2) { /* the other word comes 64 bits before it */
        mine.crc64 ^= kv_crc_multiply(kv_crc_multiply(sum[0], KV_CRC_X64), plan.tail);
    }
    kv_digest all = kv_sum(mine, plan.partial);
    const uint64_t bytes = static_cast<uint64_t>(vectors) * sizeof(Vector);
    if (bytes < 8) { /* of the inverted bits those that the block is too short for */
        all.crc64 ^= ~0ull >> (8 * bytes);
    }
    all.crc64 = ~all.crc64;
    return all;
}

template <typename Vector>
__device__ __forceinline__ void kv_digest_all(const kv_digest_args &args, kv_block *tile, kv_crc_table *table, kv_digest *partial)
{
    kv_crc_fill(*table, kv_crc_shift(KV_CRC_ONE, blockDim.x * sizeof(Vector)));
    const uint32_t after = (blockDim.x - 1 - threadIdx.x) * sizeof(Vector);
    const kv_digest_plan plan = {table, kv_crc_shift(KV_CRC_X64, after), partial};
    const kv_share share = kv_share_of(args.num_blocks, 1);
    for (uint32_t first = share.begin; first < share.end; first += KV_DIGEST_TILE) {
        const uint32_t left = share.end - first;
        const uint32_t count = left < KV_DIGEST_TILE ? left : KV_DIGEST_TILE;
        __syncthreads(); /* nobody reads the last tile any more */
        kv_fetch_blocks(tile, args.blocks, first, count, threadIdx.x, blockDim.x);
        __syncthreads();
        for (uint32_t i = 0; i < count; ++i) {
            const kv_digest digest = kv_digest_one<Vector>(args, tile[i].src, plan);
            if (threadIdx.x == 0) {
                reinterpret_cast<kv_digest *>(args.digests)[first + i] = digest;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024) kv_digest_blocks(const __grid_constant__ kv_digest_args args)
{
    __shared__ kv_block tile[KV_DIGEST_TILE];
    __shared__ kv_crc_table table;
    __shared__ kv_digest partial[32];
    switch (args.nest.vector_bytes) {
    case 16: kv_digest_all<uint4>(args, tile, &table, partial); break;
    case 8: kv_digest_all<uint64_t>(args, tile, &table, partial); break;
    case 4: kv_digest_all<uint32_t>(args, tile, &table, partial); break;
    case 2: kv_digest_all<uint16_t>(args, tile, &table, partial); break;
    case 1: kv_digest_all<uint8_t>(args, tile, &table, partial); break;
    }
    /* The digests may be host memory that a processor reads as soon as the launch is seen to end. */
    __threadfence_system();
}
