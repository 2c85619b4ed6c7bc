//! Load or recompute: what every source of KV may cost, and the account that keeps the promise.
//!
//! ```text
//!   recompute   what computing a range takes        load      what a source takes, as a distribution
//!   fit, level, sketch: how both are learnt         failure   how likely it fails;  breaker  when to leave it alone
//!         │                                           │
//!         └──────────────► rule ◄─────────────────────┘      expected cost, and the deadline that makes it least
//!                           │
//!                        ledger                              total <= 1.02 x recompute-only + 1 s, whatever happens
//!                           │
//!                        decide ──► Decision + Explanation   settle ◄── what really happened
//! ```
//!
//! No clock, no randomness, no I/O: both are arguments. A decision allocates nothing.
//!
//! # The promise
//!
//! A runtime that (1) reports every pass of prefill that it completes, once, (2) stops waiting at the deadline and (3)
//! settles every ticket with the time that it really waited, spends at most `1.02 x recompute-only + 1 s` in total.
//! The [ledger](Balance) makes it so by construction; estimates only decide how much is gained. Tickets may be settled
//! late, in any order, or never: what is not settled stays reserved. A load that returns wrong bytes has failed after
//! the time that was waited for it. A recompute slower than predicted is slower on both sides of the account.
//!
//! # The planner asks
//!
//! [`Planner::acquire`](crate::planner::Planner::acquire) asks with what NVMe has of a chain, and with what remote stores
//! may have of the rest; it keeps the tickets and settles them. The runtime owes it
//! [`observed_prefill`](crate::planner::Planner::observed_prefill) for every pass.
//!
//! ```
//! use kv_core::cost::{Ask, CostConfig, CostModel, LoadSize, LoadTimes, Offer, Outcome, SourceConfig, TokenRange};
//! use kv_core::cost::{WhenLate, priors};
//! use kv_core::key::Fingerprint;
//! use kv_core::units::{Bytes, Nanos, Tokens};
//!
//! let remote = SourceConfig { name: "redis".into(), link: priors::NETWORK };
//! let curve = priors::curve("gpt-oss-120b", "H200");
//! let mut model = CostModel::new(CostConfig { fingerprint: Fingerprint([7; 16]), curve, sources: vec![remote] })?;
//! let source = model.source("redis").ok_or("configured above")?;
//! let range = TokenRange::new(0, 16_000);
//! let offers = [Offer { source, size: LoadSize::raw(Bytes(16_000 * 73_728)) }];
//! let mut now = Nanos(0);
//! let mut loaded = 0;
//! for i in 0..50_u64 {
//!     let ask = Ask { range, prompt_end: Tokens(16_001), when_late: WhenLate::GiveUp };
//!     let dice = i.wrapping_mul(0x9E37_79B9_7F4A_7C15); // any random bits
//!     let decision = model.decide(now, &ask, &offers, dice);
//!     if let Some(probe) = decision.probe {
//!         // A read that nobody waits for: 10 ms and 10 GB/s.
//!         let times = LoadTimes { transfer: Nanos(10_000_000 + probe.bytes.0 / 10), ..LoadTimes::default() };
//!         model.settle(now, probe.ticket, Outcome::Arrived { waited: times.transfer, times });
//!     }
//!     match decision.load {
//!         None => model.observed_prefill(now, range, Nanos::from_millis(500)),
//!         Some(load) => {
//!             let times = LoadTimes { transfer: Nanos::from_millis(128), ..LoadTimes::default() };
//!             model.settle(now, load.ticket, Outcome::Arrived { waited: times.transfer, times });
//!             loaded += 1;
//!         }
//!     }
//!     now = now + Nanos::from_millis(1000);
//! }
//! assert!(loaded > 30, "the first requests recompute while the source is measured beside them");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod breaker;
mod decide;
mod explain;
mod failure;
mod fit;
mod forecast;
mod ledger;
mod level;
mod load;
mod model;
pub mod priors;
mod recompute;
mod rule;
mod settle;
mod sketch;
mod snapshot;
mod split;

pub use decide::{Ask, Decision, Hedge, Load, Offer, Probe, Quote};
pub use explain::{Decided, Explanation, SourceTerms, Term};
pub use forecast::{LoadForecast, LoadSize, LoadTimes};
pub use ledger::{Balance, CREDIT};
pub use model::{ConfigError, CostConfig, CostModel, SourceConfig, SourceId};
pub use recompute::{RecomputeCurve, RecomputeForecast, TokenRange};
pub use rule::WhenLate;
pub use settle::{Outcome, Ticket};
pub use snapshot::RestoreError;
