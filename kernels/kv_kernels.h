/*
 * Arguments of kvtier's kernels. One header for nvcc, for the host compiler (tests) and for bindgen, which
 * makes `kv-cuda/src/kernels/args.rs` from it. Plain fixed-width fields; every struct is passed by value.
 *
 * All kernels walk the same picture. A launch names `num_blocks` blocks. A block is a nest of at most
 * KV_LEVELS loops, outermost first, around a contiguous run; the nest is the same for every block and for
 * both sides of a copy, only the steps differ. Visited in order, the runs of a block are its page-first
 * bytes.
 *
 *   for block  for i0 < count[0]  for i1 < count[1]  for i2 < count[2]  for i3 < count[3]
 *     run at  buffer_address[sum i*buffer_step] + block offset + sum i*step
 *
 * Index arithmetic is 32-bit: a launch has fewer than KV_MAX_VECTORS vectors (the caller splits), and a nest
 * fewer than KV_MAX_VECTORS runs. Addresses and byte offsets are 64-bit. Any grid works. While a launch
 * runs nobody writes its table of buffers or its kv_block.
 */
#ifndef KV_KERNELS_H
#define KV_KERNELS_H

#include <stdint.h>

#define KV_LEVELS 4
#define KV_MAX_VECTORS 0x80000000u

/* Division by a number known before the launch, for n < KV_MAX_VECTORS:
 * n / divisor == (mulhi32(n, multiplier) + n) >> shift, the sum in 32 bits without overflow. */
typedef struct kv_divisor {
    uint32_t divisor;    /* at least 1 */
    uint32_t multiplier;
    uint32_t shift;
} kv_divisor;

/* Where one side of a launch lies. */
typedef struct kv_view {
    uint64_t buffers;                /* device address of the table of buffer addresses; 0: a block's offset
                                        is its address, and buffer_step is all zeros */
    uint64_t step[KV_LEVELS];        /* bytes from one index of a level to the next */
    uint32_t buffer_step[KV_LEVELS]; /* buffers from one index of a level to the next */
} kv_view;

/* What is done to every block. */
typedef struct kv_nest {
    kv_divisor count[KV_LEVELS]; /* indices of each level; 1 where a level is not used: best the outer ones */
    kv_divisor run;              /* vectors in a run */
    kv_divisor block;            /* vectors visited of each block: a whole number of runs */
    uint32_t first_run;          /* first run visited of each block, in the order of the nest */
    uint32_t vector_bytes;       /* 1, 2, 4, 8 or 16; divides every address, offset, step and the run */
} kv_nest;

/* Where one block lies: offsets into the buffers of each side, in bytes. */
typedef struct kv_block {
    uint64_t src;
    uint64_t dst;
} kv_block;

/* kv_copy, kv_copy_bulk: copies blocks from one view to the other. `blocks` may be in pinned host memory:
 * a launch needs no upload. kv_copy_bulk takes only vectors of 16 bytes, CTAs of 32 threads, and at least 192 bytes
 * of dynamic shared memory (see bulk.cu; 48 KiB and more for speed). */
typedef struct kv_copy_args {
    kv_view src;
    kv_view dst;
    kv_nest nest;
    uint64_t blocks;     /* address of num_blocks kv_block */
    uint32_t num_blocks;
    uint32_t reserved;   /* 0 */
} kv_copy_args;

/* kv_zero: overwrites blocks with zeros (`dst` of each kv_block). */
typedef struct kv_zero_args {
    kv_view dst;
    kv_nest nest;
    uint64_t blocks;
    uint32_t num_blocks;
    uint32_t reserved;
} kv_zero_args;

/* What kv_digest found in a block, its runs laid end to end. */
typedef struct kv_digest {
    uint64_t crc64;    /* CRC-64/NVME, equal to kv_core::payload_checksum of the visited bytes */
    uint64_t nonzero;  /* number of bytes that are not zero */
} kv_digest;

/* kv_digest_blocks: reads blocks (`src` of each kv_block) and writes one kv_digest for each. CTAs of a multiple
 * of 32 threads. */
typedef struct kv_digest_args {
    kv_view src;
    kv_nest nest;
    uint64_t blocks;
    uint64_t digests;    /* address of num_blocks kv_digest */
    uint32_t num_blocks;
    uint32_t reserved;
} kv_digest_args;

/* kv_gemm: c = a * b, row-major float matrices, CTAs of 256 threads. A load for benchmarks, nothing that kvtier
 * needs. */
typedef struct kv_gemm_args {
    uint64_t a;          /* m x k */
    uint64_t b;          /* k x n */
    uint64_t c;          /* m x n */
    uint32_t m, n, k;    /* multiples of 128 (m, n) and 16 (k) */
    uint32_t reserved;
} kv_gemm_args;

#endif
