//! A trace turned into what a planner is asked: chains of block keys with arrival times.

use std::collections::HashSet;

use kv_core::key::{BlockKey, Fingerprint, Namespace, NamespaceId, NamespaceSecret};
use kv_core::layout::GroupIndex;
use kv_core::units::{Nanos, Tokens};

use crate::trace::Request;

/// One request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Since the first request.
    pub at: Nanos,
    /// Its blocks, first to last. Empty for a prompt without blocks.
    pub keys: Vec<BlockKey>,
}

/// All requests of a trace, in order.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Whose blocks they are.
    pub namespace: NamespaceId,
    /// What the bytes mean; nothing, in a replay.
    pub fingerprint: Fingerprint,
    /// The requests.
    pub arrivals: Vec<Arrival>,
    /// Blocks asked for, with repetitions.
    pub block_refs: u64,
    /// Different blocks.
    pub unique_blocks: u64,
}

impl Workload {
    /// Keys the hash ids of requests under a namespace made for replays. Arrivals never go backwards: a line
    /// with an earlier timestamp than the one before arrives with that one.
    #[must_use]
    pub fn new(requests: impl IntoIterator<Item = Request>, block_tokens: Tokens) -> Self {
        let fingerprint = Fingerprint([0; 16]);
        let secret = NamespaceSecret::new(*b"kvtier replays keep no secrets..");
        let namespace = Namespace::new("kvtier-replay", fingerprint, &secret);
        let chain = namespace.chain(GroupIndex(0), block_tokens);
        let mut seen = HashSet::new();
        let (mut first, mut latest, mut block_refs) = (None, Nanos(0), 0);
        let arrivals = requests
            .into_iter()
            .map(|request| {
                let start = *first.get_or_insert(request.timestamp_ms);
                latest = latest.max(Nanos::from_millis(request.timestamp_ms.saturating_sub(start)));
                block_refs += request.hash_ids.len() as u64;
                seen.extend(request.hash_ids.iter().copied());
                Arrival { at: latest, keys: chain.wrap_hash_ids(&request.hash_ids).collect() }
            })
            .collect();
        let unique_blocks = seen.len() as u64;
        Self { namespace: namespace.id(), fingerprint, arrivals, block_refs, unique_blocks }
    }
}
