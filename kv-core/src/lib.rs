//! The brain of kvtier.
#![forbid(unsafe_code)]

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

pub use verified::{Mismatch, RecordIdentity, Verified, payload_checksum};
