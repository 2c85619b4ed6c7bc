//! Division by a number known before the launch.

use super::args::{KV_MAX_VECTORS, kv_divisor};

/// A divisor that is zero or above [`KV_MAX_VECTORS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kernels cannot divide by {0}")]
pub struct InvalidDivisor(pub u32);

impl kv_divisor {
    /// The constants with which a kernel divides numbers below [`KV_MAX_VECTORS`].
    ///
    /// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994, figure 4.1:
    /// `shift = ceil(log2 d)`, `multiplier = floor(2^32 (2^shift - d) / d) + 1`.
    ///
    /// ```
    /// use kv_cuda::kernels::args::kv_divisor;
    /// assert_eq!(kv_divisor::new(7)?.divide(50), (7, 1));
    /// # Ok::<(), kv_cuda::kernels::InvalidDivisor>(())
    /// ```
    ///
    /// # Errors
    /// Zero, and numbers above [`KV_MAX_VECTORS`].
    pub const fn new(divisor: u32) -> Result<Self, InvalidDivisor> {
        if divisor == 0 || divisor > KV_MAX_VECTORS {
            return Err(InvalidDivisor(divisor));
        }
        let shift = 32 - (divisor - 1).leading_zeros();
        // Below 2^32: (2^shift - d) < d, as 2^(shift - 1) < d.
        let multiplier = (((1_u64 << shift) - divisor as u64) << 32) / divisor as u64 + 1;
        Ok(Self { divisor, multiplier: multiplier as u32, shift })
    }

    /// Quotient and remainder of `n`, with the arithmetic of the kernels; right for `n` below
    /// [`KV_MAX_VECTORS`].
    #[must_use]
    pub const fn divide(&self, n: u32) -> (u32, u32) {
        let high = ((n as u64 * self.multiplier as u64) >> 32) as u32;
        let quotient = high.wrapping_add(n) >> self.shift;
        (quotient, n.wrapping_sub(quotient.wrapping_mul(self.divisor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAST: u32 = KV_MAX_VECTORS - 1;

    fn check(n: u32, d: u32) {
        assert_eq!(kv_divisor::new(d).unwrap().divide(n), (n / d, n % d), "{n} / {d}");
    }

    /// Numbers near powers of two, where a rounding error would show first.
    fn edges() -> Vec<u32> {
        (0..32).flat_map(|bit| [(1_u32 << bit) - 1, 1 << bit, (1 << bit) + 1]).collect()
    }

    #[test]
    fn edges_divide_exactly() {
        for d in edges().into_iter().filter(|&d| d != 0 && d <= KV_MAX_VECTORS) {
            for n in edges().into_iter().chain([LAST]).filter(|&n| n <= LAST) {
                check(n, d);
            }
        }
    }

    #[test]
    fn no_divisor_out_of_range() {
        assert_eq!(kv_divisor::new(0), Err(InvalidDivisor(0)));
        assert_eq!(kv_divisor::new(KV_MAX_VECTORS + 1), Err(InvalidDivisor(KV_MAX_VECTORS + 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Around a multiple of the divisor: below it, on it and above.
        #[test]
        fn multiples_divide_exactly(bits in 0_u32..31, low: u32, q: u32) {
            let d = (1 << bits) | (low & ((1 << bits) - 1));
            let n = (q % (LAST / d + 1)) * d;
            for n in [n.saturating_sub(1), n, (n + 1).min(LAST), n.saturating_add(d - 1).min(LAST)] {
                check(n, d);
            }
        }

        #[test]
        fn any_number_divides_exactly(n in 0..=LAST, d in 1..=KV_MAX_VECTORS) {
            check(n, d);
        }
    }
}
