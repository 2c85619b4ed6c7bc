//! What it would cost to serve a chain here.

use super::{Match, Planner};
use crate::cost::{Offer, Quote};
use crate::index::{NamespaceIndex, NodeId};
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::Nanos;

/// What it would cost to serve a chain here, for routers that compare places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefixQuote {
    /// What is here.
    pub found: Match,
    /// Until the whole chain's KV is ready: loading or computing what NVMe has, and computing the rest.
    pub here: Quote,
    /// The same if the best remote store had all that is not here; `None` without a measured one.
    pub with_remote: Option<Quote>,
}

impl Planner {
    /// What would it cost to serve this chain here? Changes nothing and asks no remote store. `None` without a
    /// cost model.
    pub fn quote(&mut self, now: Nanos, namespace: NamespaceIndex, keys: &[BlockKey]) -> Option<PrefixQuote> {
        let found = self.lookup(namespace, keys);
        let nodes = self.match_own(namespace, keys);
        let is_slow = |node: &NodeId| self.index.best_tier(*node) == Some(Tier::Nvme);
        let slow = self.slow.as_ref()?;
        let chain = keys.len() as u32;
        let fast = nodes.iter().position(is_slow).map_or(found.blocks, |i| i as u32);
        let on_nvme = nodes.iter().filter(|n| is_slow(n)).count();
        self.matched = nodes;
        let local = match slow.nvme {
            Some(source) if on_nvme > 0 => {
                let offer = Offer { source, size: slow.raw(on_nvme) };
                slow.cost.quote(now, &slow.ask(fast..found.blocks, chain), &[offer])
            }
            _ => Quote { recompute: 0.0, expected: 0.0, p90: 0.0, source: None },
        };
        let rest = slow.ask(found.blocks..chain, chain);
        let plus = |part: Quote| Quote {
            recompute: local.recompute + part.recompute,
            expected: local.expected + part.expected,
            p90: local.p90 + part.p90,
            source: part.source.or(local.source),
        };
        let offers = slow
            .remotes
            .iter()
            .map(|r| Offer { source: r.source, size: slow.remote_size(r, chain - found.blocks) });
        let offers: Vec<Offer> = offers.collect();
        let remote = slow.cost.quote(now, &rest, &offers);
        Some(PrefixQuote {
            found,
            here: plus(slow.cost.quote(now, &rest, &[])),
            with_remote: remote.source.map(|_| plus(remote)),
        })
    }
}
