//! What is asked for: prompts whose first part another node has computed and stored.

use std::time::Duration;

use kv_core::cost::{TokenRange, priors};
use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::Epoch;
use kv_tiers::remote::{Put, RemoteKey, RemoteStore, Want};
use kvtier_benches::cost::Workload;

use crate::remote::{payload, soon};

/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = 256;
/// Bytes of a block: 512 per token. A real model has a hundred times as many, and a link that is a hundred times faster than
/// what a proxy on a small machine brings about: what matters is how loading compares to recomputing.
pub const BLOCK_BYTES: usize = 128 << 10;
/// Tokens at the end of each prompt that nobody has seen before.
const NEW_TOKENS: u32 = 64;
/// Different prompts. Served in turn they are more than the runtime's own memory holds.
const DOCUMENTS: usize = 12;
/// Of the stored part, in blocks.
const SHORTEST: u32 = 4;
const LONGEST: u32 = 48;

/// One prompt.
pub struct Prompt {
    /// Of the stored part.
    pub keys: Vec<RemoteKey>,
    bytes: Vec<Vec<u8>>,
}

/// What is asked for, in order.
pub struct Prompts {
    documents: Vec<Prompt>,
    requests: usize,
}

impl Prompts {
    /// Whose lengths are those that agents leave, as `kvtier bench cost` generates them.
    #[must_use]
    pub fn new(requests: usize) -> Self {
        let stored = Workload::generated().arrivals.into_iter().map(|a| a.stored / BLOCK_TOKENS);
        let lengths = stored.filter(|blocks| (SHORTEST..=LONGEST).contains(blocks)).step_by(7);
        let document = |(n, blocks): (usize, u32)| {
            let keys: Vec<_> = (0..u64::from(blocks)).map(|i| key((n as u64) << 32 | i)).collect();
            let bytes = keys.iter().map(|key| payload(key, BLOCK_BYTES)).collect();
            Prompt { keys, bytes }
        };
        Self { documents: lengths.take(DOCUMENTS).enumerate().map(document).collect(), requests }
    }

    /// How many requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// The requests.
    pub fn iter(&self) -> impl Iterator<Item = &Prompt> {
        self.documents.iter().cycle().take(self.requests)
    }

    /// Blocks of the longest one.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.documents.iter().map(|d| d.keys.len()).max().unwrap_or(0)
    }

    /// Stores them all.
    ///
    /// # Panics
    /// When the store does not take them.
    pub fn store(&self, store: &dyn RemoteStore) {
        for document in &self.documents {
            let put = |(key, payload): (&RemoteKey, &Vec<u8>)| {
                let meta = RecordMeta { identity: key.identity(), parent: BlockKey::ROOT, depth: 0 };
                let stored = store.put(&[Put { meta, payload, elements: None }], soon()).wait();
                assert_eq!(stored, [Ok(())]);
            };
            document.keys.iter().zip(&document.bytes).for_each(put);
        }
    }

    /// What the first requests take by recomputing everything.
    #[must_use]
    pub fn recompute(&self, requests: usize) -> Duration {
        self.iter().take(requests).map(|prompt| prompt.pass(0).1).sum()
    }
}

impl Prompt {
    /// What is computed when the first `ready` blocks are there, and how long a GPU takes for it: gpt-oss-120b on an H200.
    #[must_use]
    pub fn pass(&self, ready: u32) -> (TokenRange, Duration) {
        let end = self.keys.len() as u32 * BLOCK_TOKENS + NEW_TOKENS;
        let range = TokenRange::new(ready * BLOCK_TOKENS, end);
        let curve = priors::GPT_OSS_120B_H200;
        let (n0, n1) = (f64::from(range.start.0), f64::from(range.end.0));
        let seconds =
            curve.per_pass + curve.per_token * (n1 - n0) + curve.per_pair * (n1 * n1 - n0 * n0) / 2.0;
        (range, Duration::from_secs_f64(seconds))
    }

    /// Compares a block with what was stored.
    ///
    /// # Panics
    /// When it is not.
    pub fn check(&self, block: usize, bytes: &[u8]) {
        assert!(self.bytes[block] == bytes, "block {block} has wrong bytes and was accepted");
    }

    /// What a block holds.
    #[must_use]
    pub fn bytes(&self, block: usize) -> &[u8] {
        &self.bytes[block]
    }

    /// What to ask a store for.
    pub fn wants(&self) -> Vec<Want> {
        self.keys.iter().map(|&key| Want { key, payload_bytes: BLOCK_BYTES }).collect()
    }

    /// Memory for it.
    #[must_use]
    pub fn room(&self) -> Vec<Vec<u8>> {
        vec![vec![0; BLOCK_BYTES]; self.keys.len()]
    }

    /// Names for reads.
    pub fn jobs() -> impl Iterator<Item = JobId> {
        (0..).map(JobId)
    }
}

fn key(n: u64) -> RemoteKey {
    RemoteKey {
        namespace: NamespaceId([1; 16]),
        epoch: Epoch(0),
        fingerprint: Fingerprint([2; 16]),
        key: crate::remote::key(1, 0, n).key,
    }
}
