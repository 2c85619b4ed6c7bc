//! What every binding of kvtier shares. The C ABI and the Python wheel are thin layers over this crate.
//!
//! ```text
//!      exists (at once)    get · put · pin · flush        offload · onboard
//!            │                     │ submit                     │ submit
//!            ▼                     ▼                            ▼
//!        ┌──────────────────── Store ─────────────────────┐   Pool: the runtime's paged tensors
//!        │ keys ─► BlockKey   bounded queue ─► workers    │◄──┘  on a kv_cuda::Device
//!        └───────────────────────┬────────────────────────┘
//!                         kv_tiers::Engine                    Ticket ─► wait, cancel, status per key
//!                                                             TaskQueue ─► eventfd, tags
//! ```
//!
//! Runtimes name blocks by hashes or strings of their own ([`KeyBatch`]) and hold bytes in buffers of their own
//! ([`Buffers`]) or in paged tensors ([`pool::Pool`]). It promises that
//!
//! - a call returns at once, and [`SubmitError::Busy`] is the answer when too much is under way: nothing queues
//!   without bound;
//! - a buffer is touched only between the submission and the moment when its ticket is done, also after a cancel;
//! - a get copies verified bytes or says that it did not.
//!
//! Start at [`Store::open`].

pub mod batch;
pub mod config;
mod copies;
mod flow;
mod life;
mod open;
pub mod pool;
pub mod queue;
mod secret;
pub mod slow;
pub mod stats;
pub mod store;
pub mod task;
mod work;

pub use batch::{BatchError, Buffers, KeyBatch, Run};
pub use config::{Durability, Identity, StoreConfig};
pub use open::{FEWEST_SLOTS, OpenError};
pub use queue::{Finished, TaskQueue};
pub use slow::{RemoteUrl, SlowSources};
pub use store::{Presence, Store, Submission, SubmitError};
pub use task::{KeyStatus, Summary, Ticket};
