//! The brain of kvtier: it decides what KV block lives where, and moves nothing.
//!
//! ```text
//!   layout, key     what a block is: geometry, fragments, namespaces, chained 128-bit keys
//!   index           which blocks are resident in which tier, and the longest readable prefix of a chain
//!   cost            load or recompute: estimators, the rule, the ledger
//!   policy          who leaves a tier first; what is worth a write to NVMe; the exact offline optimum
//!   planner         the state machine: acquire, commit, complete, tick ──► jobs, answers, events
//!   job, verified   what hands are asked to do, and the proof that they did it
//! ```
//!
//! It promises that every decision is a function of its inputs: no I/O, no threads, no clock, no `unsafe`. So what
//! a replay or a simulation shows is what production does. A block becomes readable only by consuming a
//! [`Verified`] token for the very job that brought it, and a slot has one holder at a time.
//!
//! Start at [`planner::Planner`]:
//!
//! ```
//! use kv_core::key::{BlockKey, Fingerprint, Namespace, NamespaceSecret};
//! use kv_core::layout::GroupIndex;
//! use kv_core::planner::{Outbox, Planner, PlannerConfig};
//! use kv_core::units::{Epoch, Nanos, Tokens};
//!
//! let namespace = Namespace::new("tenant", Fingerprint([7; 16]), &NamespaceSecret::new([42; 32]));
//! let keys: Vec<_> = namespace.chain(GroupIndex(0), Tokens(16)).keys(BlockKey::ROOT, &[1; 64], &[]).collect();
//!
//! let mut planner = Planner::new(PlannerConfig::host_only(100))?;
//! let tenant = planner.namespace(namespace.id(), namespace.fingerprint(), Epoch(0))?;
//! let mut out = Outbox::default();
//! for found in [0, 4] {
//!     let request = planner.acquire(Nanos(0), tenant, &keys, Nanos::NEVER, &mut out)?;
//!     let answer = out.replies.pop().ok_or("nothing has to be loaded")?;
//!     assert_eq!((answer.ready, answer.granted), (found, 4));
//!     // The runtime computes blocks `ready..granted` into `planner.slots(request)`, and then:
//!     planner.commit(Nanos(0), request, answer.granted, &mut out)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod cost;
pub mod ids;
pub mod index;
pub mod job;
pub mod key;
pub mod layout;
pub mod planner;
pub mod policy;
pub mod tier;
pub mod units;
mod verified;

pub use verified::{Mismatch, PayloadDigest, RecordIdentity, Verified, payload_checksum};
