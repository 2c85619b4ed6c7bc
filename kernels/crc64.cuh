/*
 * CRC-64/NVME as arithmetic on polynomials over GF(2), modulo the CRC's polynomial P.
 *
 * Bits are reflected, as in the CRC itself: bit 63 of a number is the coefficient of x^0, bit 0 that of x^63.
 * So the bytes of a message, loaded as a little-endian number, need no reversal. With M the message,
 *
 *   crc = M * x^64 mod P,   with the first 64 bits of the message and the result inverted.
 *
 * Multiplication is linear, so parts of a message may be summed in any order, each multiplied by x to the
 * number of bits that follow it.
 *
 * P: NVM Express NVM Command Set Specification 1.0, 5.2.1.3.4 ("64b CRC definition").
 */
#pragma once

#include <stdint.h>

/* P without x^64, reflected. As x^64 mod P is P without x^64, it is x^64 too. */
constexpr uint64_t KV_CRC_X64 = 0x9A6C9329AC4BC9B5ull;
constexpr uint64_t KV_CRC_ONE = 1ull << 63;
constexpr uint64_t KV_CRC_X8 = KV_CRC_ONE >> 8;

#define KV_CRC_CONSTEXPR constexpr __device__ __forceinline__

/* a * x */
KV_CRC_CONSTEXPR uint64_t kv_crc_times_x(uint64_t a)
{
    return (a >> 1) ^ ((a & 1) != 0 ? KV_CRC_X64 : 0);
}

/* a * b, a bit at a time */
KV_CRC_CONSTEXPR uint64_t kv_crc_multiply(uint64_t a, uint64_t b)
{
    uint64_t product = 0;
#pragma unroll 8
    for (int i = 0; i < 64; ++i) {
        product ^= (a & KV_CRC_ONE) != 0 ? b : 0;
        a <<= 1;
        b = kv_crc_times_x(b);
    }
    return product;
}

/* x^(8 * 2^i) for i below KV_CRC_POWERS: enough for 2^KV_CRC_POWERS bytes. */
constexpr int KV_CRC_POWERS = 16;
struct kv_crc_powers {
    uint64_t of[KV_CRC_POWERS];
    constexpr kv_crc_powers() : of()
    {
        uint64_t power = KV_CRC_X8;
        for (int i = 0; i < KV_CRC_POWERS; ++i) {
            of[i] = power;
            power = kv_crc_multiply(power, power);
        }
    }
};
__constant__ constexpr kv_crc_powers KV_CRC_BYTES = kv_crc_powers();

/* a * x^(8 * bytes) */
__device__ __forceinline__ uint64_t kv_crc_shift(uint64_t a, uint32_t bytes)
{
#pragma unroll 1
    for (int i = 0; bytes >> i != 0; ++i) {
        if ((bytes >> i & 1) != 0) {
            a = kv_crc_multiply(a, KV_CRC_BYTES.of[i]);
        }
    }
    return a;
}

/*
 * Multiplication by one factor, a byte at a time: product[i][v] is v, as byte i of a number, times the factor.
 * 16 KiB of shared memory.
 */
struct kv_crc_table {
    uint64_t product[8][256];
};

__device__ __forceinline__ uint64_t kv_crc_multiply(uint64_t a, const kv_crc_table &by)
{
    uint64_t product = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        product ^= by.product[i][a >> (8 * i) & 0xFF];
    }
    return product;
}

/* Fills `table` with all threads of the CTA. */
__device__ __forceinline__ void kv_crc_fill(kv_crc_table &table, uint64_t factor)
{
    /* Single bits by multiplication, all other bytes as sums of them. */
    for (uint32_t bit = threadIdx.x; bit < 64; bit += blockDim.x) {
        table.product[bit / 8][1u << (bit % 8)] = kv_crc_multiply(1ull << bit, factor);
    }
    __syncthreads();
    for (uint32_t entry = threadIdx.x; entry < 8 * 256; entry += blockDim.x) {
        const uint32_t value = entry % 256;
        if ((value & (value - 1)) == 0 && value != 0) {
            continue;
        }
        uint64_t sum = 0;
        for (int bit = 0; bit < 8; ++bit) {
            sum ^= (value >> bit & 1) != 0 ? table.product[entry / 256][1u << bit] : 0;
        }
        table.product[entry / 256][value] = sum;
    }
    __syncthreads();
}
