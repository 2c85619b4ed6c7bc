//! How likely a load fails: a Beta posterior that forgets.
//!
//! A failure is an error, a miss after a promise, or bytes that were refused. A load that is only late is no failure:
//! the distribution of times knows it.

use super::snapshot::{Damaged, Reader, Writer};

/// One failure in a hundred, with the weight of fifty loads.
const PRIOR: (f64, f64) = (0.5, 49.5);
/// An outcome's weight after each further one. A hundred outcomes are remembered.
const FORGET: f64 = 0.99;

/// See the module's head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailureRisk {
    failed: f64,
    good: f64,
}

impl FailureRisk {
    /// Probability that the next load fails.
    pub(super) fn probability(&self) -> f64 {
        (PRIOR.0 + self.failed) / (PRIOR.0 + PRIOR.1 + self.failed + self.good)
    }

    pub(super) fn observe(&mut self, failed: bool) {
        self.failed *= FORGET;
        self.good *= FORGET;
        *(if failed { &mut self.failed } else { &mut self.good }) += 1.0;
    }

    pub(super) fn save(&self, out: &mut Writer) {
        out.f64(self.failed);
        out.f64(self.good);
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        let most = 1.0 / (1.0 - FORGET) + 1.0;
        *self = Self { failed: from.in_range(0.0, most)?, good: from.in_range(0.0, most)? };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_share_of_failures() {
        let mut risk = FailureRisk::default();
        assert!((risk.probability() - 0.01).abs() < 1e-12);
        (0..1000).for_each(|i| risk.observe(i % 4 == 0));
        assert!((0.14..0.20).contains(&risk.probability()), "a quarter, drawn to the prior by a third");
        (0..500).for_each(|_| risk.observe(false));
        assert!(risk.probability() < 0.01, "what was long ago is forgotten");
    }
}
