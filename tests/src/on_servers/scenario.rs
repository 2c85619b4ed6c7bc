//! What happens to the server and its network.

use std::time::Duration;

use crate::proxy::Fault;

/// What happens to stored values when the healthy third is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// All are there by name, and none holds what it should.
    Spoilt,
}

/// One course of events.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// As printed.
    pub name: &'static str,
    /// The network at first...
    pub healthy: Fault,
    /// ...and from a third of the requests on.
    pub then: Fault,
    /// The values from then on.
    pub damage: Damage,
}

/// A millisecond away, and as fast as the proxy is. Recomputing a block takes 6.3 ms: 21 MB/s.
const GOOD: Fault = link(1, 1, 4_000_000_000);

const fn link(latency_ms: u64, jitter_ms: u64, per_second: u64) -> Fault {
    let (latency, jitter) = (Duration::from_millis(latency_ms), Duration::from_millis(jitter_ms));
    Fault::Link { latency, jitter, per_second }
}

const fn after_a_third(name: &'static str, then: Fault) -> Scenario {
    Scenario { name, healthy: GOOD, then, damage: Damage::None }
}

const fn always(name: &'static str, fault: Fault) -> Scenario {
    Scenario { name, healthy: fault, then: fault, damage: Damage::None }
}

/// All that are played.
pub const SCENARIOS: [Scenario; 10] = [
    always("healthy", GOOD),
    always("twice as fast as recomputing", link(1, 1, 42_000_000)),
    always("slower than recomputing", link(2, 2, 12_000_000)),
    always("jitter up to 200 ms", link(1, 200, 4_000_000_000)),
    after_a_third("then 60 times slower", link(60, 60, 5_000_000)),
    after_a_third("then hangs", Fault::BlackHole(0)),
    after_a_third("then resets", Fault::Reset(1 << 19)),
    after_a_third("then flips bits", Fault::Flip(1 << 20)),
    after_a_third("then cuts values short", Fault::Truncate(1 << 19)),
    Scenario { damage: Damage::Spoilt, ..after_a_third("then lies: has all names, no values", GOOD) },
];
