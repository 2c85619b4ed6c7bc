//! How long things really take: a GPU with noise, drift and load, and a remote with contention, heavy tails, failures
//! and regimes. Everything follows from a seed; what a request meets does not depend on the rule that decides, except
//! for the bytes that the rule has in flight.

use kv_core::cost::TokenRange;
use serde::Serialize;

use crate::SplitMix64;

/// KV of one token: 36 layers, 8 KV heads of 64, K and V in bf16 (gpt-oss-120b).
pub const TOKEN_BYTES: u64 = 73_728;
/// gpt-oss-120b on H200, least squares on llm-d's published prefill times.
const PER_PASS: f64 = 0.026;
const PER_TOKEN: f64 = 24.6e-6;
const PER_PAIR: f64 = 6.24e-10;
/// llm-d's published pulls of that model.
const PULL_FIXED: f64 = 0.0255;
const PULL_PER_BYTE: f64 = 4.07e-6 / TOKEN_BYTES as f64;
/// Share of the bytes in flight that a pull waits for.
const CONTENTION: f64 = 0.5;
/// Requests for which an adversary behaves.
const LURE: usize = 500;

/// What the remote is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Remote {
    /// As measured by llm-d: lognormal noise, one pull in a hundred heavy-tailed, rare failures and hangs.
    AsMeasured,
    /// The same, 4 times slower.
    Slower4,
    /// The same, 8 times slower: about as fast as the GPU.
    Slower8,
    /// The same, 25 times slower.
    Slower25,
    /// As measured, but eight times slower for half a minute every minute or so.
    Shifting,
    /// Every pull takes longer than recomputing: no pull is right.
    AlwaysSlower,
    /// Good until trusted, then hangs for ever.
    Hang,
    /// Good until trusted, then 60 times slower.
    Slower60,
    /// Good until trusted, then delivers short values, as late as it can.
    WrongSizes,
    /// Says that it has everything; every get is a miss.
    LyingIndex,
    /// 200 requests good, 200 hanging, and so on.
    Alternating,
    /// Sees the deadline of each load and delivers just after it.
    Spiteful,
}

impl Remote {
    /// Remotes that mean well.
    pub const HONEST: [Self; 5] =
        [Self::AsMeasured, Self::Slower4, Self::Slower8, Self::Slower25, Self::Shifting];
    /// Remotes that do not.
    pub const ADVERSE: [Self; 6] =
        [Self::Hang, Self::Slower60, Self::WrongSizes, Self::LyingIndex, Self::Alternating, Self::Spiteful];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::HONEST.into_iter().chain([Self::AlwaysSlower]).chain(Self::ADVERSE)
    }

    /// As printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsMeasured => "as measured",
            Self::Slower4 => "4x slower",
            Self::Slower8 => "8x slower",
            Self::Slower25 => "25x slower",
            Self::Shifting => "shifting 1x/8x",
            Self::AlwaysSlower => "always slower",
            Self::Hang => "hangs",
            Self::Slower60 => "60x slower",
            Self::WrongSizes => "wrong sizes",
            Self::LyingIndex => "lying index",
            Self::Alternating => "alternating",
            Self::Spiteful => "spiteful",
        }
    }
}

/// What a pull would do, in seconds from its start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pull {
    /// Delivers.
    Arrives(f64),
    /// Is known to have failed.
    Fails(f64),
    /// Never ends.
    Hangs,
    /// Delivers just after whatever deadline it was given.
    JustLate,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    remote: Remote,
    /// Moments at which the GPU changes between idle and busy, and the remote between good and congested.
    gpu_switches: Vec<f64>,
    remote_switches: Vec<f64>,
}

/// Standard normal (Box and Muller).
fn normal(rng: &mut SplitMix64) -> f64 {
    let (radius, angle) = (uniform(rng), uniform(rng));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// In (0, 1).
fn uniform(rng: &mut SplitMix64) -> f64 {
    ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Exponential sojourns in two states in turn, until `end`.
fn switches(rng: &mut SplitMix64, mean: [f64; 2], end: f64) -> Vec<f64> {
    let (mut at, mut state, mut all) = (0.0, 0, Vec::new());
    while at < end {
        at -= mean[state] * uniform(rng).ln();
        all.push(at);
        state = 1 - state;
    }
    all
}

fn second_state(switches: &[f64], at: f64) -> bool {
    switches.partition_point(|s| *s <= at) % 2 == 1
}

impl World {
    /// A world for requests until `end` seconds.
    #[must_use]
    pub fn new(seed: u64, remote: Remote, end: f64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let gpu_switches = switches(&mut rng, [90.0, 45.0], end);
        let remote_switches = switches(&mut rng, [60.0, 30.0], end);
        Self { seed, remote, gpu_switches, remote_switches }
    }

    fn rng(&self, request: usize, what: u64) -> SplitMix64 {
        SplitMix64::new(
            self.seed ^ (request as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03) ^ what.rotate_left(32),
        )
    }

    /// The GPU's factor for a request: half as busy again now and then, a drift of 10 % over half an hour, and noise of 3 %.
    fn gpu(&self, request: usize, at: f64) -> f64 {
        self.gpu_expected(at) * (0.03 * normal(&mut self.rng(request, 1))).exp()
    }

    /// The same without noise: all that could be known.
    fn gpu_expected(&self, at: f64) -> f64 {
        let busy = if second_state(&self.gpu_switches, at) { 1.5 } else { 1.0 };
        busy * (1.0 + 0.1 * (std::f64::consts::TAU * at / 1800.0).sin())
    }

    /// Seconds of a pass over `range`.
    #[must_use]
    pub fn pass(&self, request: usize, at: f64, range: TokenRange) -> f64 {
        self.extra(request, at, range) + self.gpu(request, at) * PER_PASS
    }

    /// Seconds that `range` adds to a pass.
    #[must_use]
    pub fn extra(&self, request: usize, at: f64, range: TokenRange) -> f64 {
        let (n0, n1) = (f64::from(range.start.0), f64::from(range.end.0));
        self.gpu(request, at) * (PER_TOKEN * (n1 - n0) + PER_PAIR * (n1 * n1 - n0 * n0) / 2.0)
    }

    /// Relative error that the best prediction of a pass would make.
    #[must_use]
    pub fn pass_noise(&self, request: usize, at: f64) -> f64 {
        (self.gpu_expected(at) / self.gpu(request, at) - 1.0).abs()
    }

    /// What a pull of `bytes` does that begins at `at` behind `in_flight` bytes. `what` tells the load of a request from
    /// its probe.
    #[must_use]
    pub fn pull(&self, request: usize, what: u64, at: f64, bytes: u64, in_flight: u64) -> Pull {
        let mut rng = self.rng(request, 2 + what);
        let noise = (0.25 * normal(&mut rng)).exp();
        // One in a hundred is heavy-tailed: Pareto with index 1.5.
        let tail = if rng.once_in(100) { uniform(&mut rng).powf(-1.0 / 1.5) } else { 1.0 };
        let (fails, hangs) = (rng.once_in(200), rng.once_in(200));
        let slower = match self.remote {
            Remote::Slower4 => 4.0,
            Remote::Slower8 => 8.0,
            Remote::Slower25 | Remote::AlwaysSlower => 25.0,
            Remote::Shifting if second_state(&self.remote_switches, at) => 8.0,
            Remote::Slower60 if request >= LURE => 60.0,
            _ => 1.0,
        };
        let behind = CONTENTION * in_flight as f64;
        let took = slower * noise * tail * (PULL_FIXED + PULL_PER_BYTE * (bytes as f64 + behind));
        match self.remote {
            Remote::AlwaysSlower => {
                let tokens = (bytes / TOKEN_BYTES) as u32;
                Pull::Arrives(took.max(1.1 * self.extra(request, at, TokenRange::new(0, tokens))))
            }
            Remote::Hang if request >= LURE => Pull::Hangs,
            Remote::WrongSizes if request >= LURE => Pull::Fails(took),
            Remote::LyingIndex => Pull::Fails(took),
            Remote::Alternating if request / 200 % 2 == 1 => Pull::Hangs,
            Remote::Spiteful if request >= LURE => Pull::JustLate,
            _ if hangs => Pull::Hangs,
            _ if fails => Pull::Fails(took),
            _ => Pull::Arrives(took),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_and_the_rule_does_not() {
        let world = World::new(7, Remote::Shifting, 1000.0);
        let again = World::new(7, Remote::Shifting, 1000.0);
        let other = World::new(8, Remote::Shifting, 1000.0);
        let pulls = |w: &World| (0..50).map(|i| w.pull(i, 0, 3.0 * i as f64, 1 << 28, 0)).collect::<Vec<_>>();
        assert_eq!(pulls(&world), pulls(&again));
        assert_ne!(pulls(&world), pulls(&other));
    }

    #[test]
    fn always_slower_is_always_slower() {
        let world = World::new(3, Remote::AlwaysSlower, 1000.0);
        for i in 0..5000 {
            let (at, tokens) = (i as f64 / 5.0, 512 * (1 + i as u32 % 200));
            let recompute = world.extra(i, at, TokenRange::new(0, tokens));
            let Pull::Arrives(took) = world.pull(i, 0, at, u64::from(tokens) * TOKEN_BYTES, 0) else {
                panic!("it does answer");
            };
            assert!(took > recompute);
        }
    }

    #[test]
    fn a_slower_remote_takes_that_much_longer_and_contention_adds() {
        let pull = |remote, in_flight| {
            let world = World::new(1, remote, 10.0);
            match world.pull(3, 0, 1.0, 1 << 28, in_flight) {
                Pull::Arrives(took) => took,
                other => panic!("request 3 is a plain one: {other:?}"),
            }
        };
        assert!((pull(Remote::Slower8, 0) / pull(Remote::AsMeasured, 0) - 8.0).abs() < 1e-9);
        assert!(pull(Remote::AsMeasured, 1 << 28) > 1.15 * pull(Remote::AsMeasured, 0));
    }
}
