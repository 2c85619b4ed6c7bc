//! Where to cut a prefix when loading and computing run at the same time: compute from the front, load from the back.
//!
//! Only for runtimes that can do both at once and accept a prefix that is filled from its end. For all others the best
//! cut is all or nothing (see [`rule`](super::rule)). Computing `k` of `n` tokens from position `p` while the other
//! `n - k` are loaded takes the longer of
//!
//! ```text
//!   a*k + b*(p*k + k^2/2)        and        t0 + t*(n - k)
//! ```
//!
//! which is shortest where they are equal (Jin et al., Cake, 2024).

use super::forecast::LoadForecast;
use super::recompute::TokenRange;

/// Tokens to compute from the front, `0..=range.len()`. `a` and `b` in seconds per token and pair.
pub(super) fn split(range: TokenRange, (a, b): (f64, f64), load: &LoadForecast, fixed: f64) -> u32 {
    let n = f64::from(range.len());
    if n == 0.0 {
        return 0;
    }
    // What does not shrink with the number of tokens, and what does.
    let t0 = load.lookup + load.queue + fixed;
    let per_token = (load.transfer - fixed + load.decode + load.h2d).max(0.0) / n;
    // b/2 k^2 + (a + b p + t) k - (t0 + t n) = 0
    let linear = a + b * f64::from(range.start.0) + per_token;
    let constant = t0 + per_token * n;
    // The form of the root that does not cancel when b is tiny.
    let root = 2.0 * constant / (linear + (linear * linear + 2.0 * b * constant).sqrt());
    if root.is_finite() { root.clamp(0.0, n) as u32 } else { range.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::forecast::LoadSize;
    use crate::cost::load::LoadModel;
    use crate::cost::priors;
    use crate::units::{Bytes, Nanos};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_other_cut_is_faster(
            start in 0..50_000u32, len in 1..60_000u32, kib in 1..200u64, a in 1e-6..1e-4f64, b in 1e-12..1e-8f64
        ) {
            let range = TokenRange::new(start, start + len);
            let model = LoadModel::new(&priors::NETWORK);
            let load = model.forecast(Nanos(0), &LoadSize::raw(Bytes(u64::from(len) * (kib << 10))));
            let fixed = model.fixed(Nanos(0));
            let time = |k: f64| {
                let compute = a * k + b * (f64::from(start) * k + k * k / 2.0);
                let rest = f64::from(len) - k;
                compute.max(fixed + (load.transfer - fixed) * rest / f64::from(len))
            };
            let found = split(range, (a, b), &load, fixed);
            prop_assert!(found <= len);
            let best = (0..=200).map(|i| time(f64::from(len) * f64::from(i) / 200.0)).fold(f64::MAX, f64::min);
            // Whole tokens: one may be missing.
            prop_assert!(time(f64::from(found)) <= best * 1.001 + a + b * 1e5 + load.transfer / f64::from(len));
        }
    }

    #[test]
    fn nothing_to_cut() {
        let model = LoadModel::new(&priors::NETWORK);
        let load = model.forecast(Nanos(0), &LoadSize::raw(Bytes(0)));
        assert_eq!(split(TokenRange::new(5, 5), (1e-5, 1e-9), &load, 0.01), 0);
    }
}
