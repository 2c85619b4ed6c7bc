/*
 * Division by numbers known before the launch: a high multiplication, an addition and a shift instead of
 * the dozens of instructions of a 32-bit division.
 *
 * With shift = ceil(log2(d)) and multiplier = floor(2^32 * (2^shift - d) / d) + 1, n / d is
 * (mulhi(n, multiplier) + n) >> shift for every n < 2^31 (Granlund and Montgomery, "Division by Invariant
 * Integers using Multiplication", 1994, figure 4.1). `kv_divisor::new` in kv-cuda makes the constants.
 */
#pragma once

#include "kv_kernels.h"

struct kv_quotient {
    uint32_t quotient;
    uint32_t remainder;
};

__device__ __forceinline__ kv_quotient kv_divide(uint32_t n, const kv_divisor &by)
{
    const uint32_t quotient = (__umulhi(n, by.multiplier) + n) >> by.shift;
    return {quotient, n - quotient * by.divisor};
}
