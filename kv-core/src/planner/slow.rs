//! Slow sources: what the cost model is asked before anything is loaded from them.
//!
//! ```text
//!   slow ─► the rule ─► stake: a load and its deadline      remote: asking stores, and bringing what they have
//!                   └─► probe: a read for nobody            put_behind: storing what was computed
//! ```

use super::config::SlowSources;
use super::probe::ProbeRun;
use super::stake::{End, Hedged, Loads, Stake};
use super::write_behind::WriteHealth;
use super::{Outbox, Planner, request_key};
use crate::cost::{
    Ask, ConfigError, CostModel, Explanation, LoadSize, Offer, Outcome, Probe, RestoreError, SourceId,
    TokenRange, WhenLate,
};
use crate::ids::{RemoteId, RequestId};
use crate::index::NodeId;
use crate::key::BlockKey;
use crate::tier::Tier;
use crate::units::{Bytes, Nanos, Tokens};
use slotmap::{DefaultKey, SlotMap};
use std::collections::VecDeque;
use std::ops::Range;

/// How fast what a remote store is believed to have, and how its values compress, follows what was seen.
const FOLLOW: f64 = 1.0 / 32.0;
/// One request in this many asks a store that has hardly ever had anything.
const LOOK_ANYWAY: u64 = 64;
/// How often that is.
const HARDLY_EVER: f64 = 0.02;

/// Why a request loads or recomputes what slow sources have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reasons {
    /// What NVMe has of it, if NVMe is asked about.
    pub nvme: Option<Explanation>,
    /// What remote stores have, or were thought to have: the latest decision.
    pub remote: Option<Explanation>,
}

/// One remote store.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) source: SourceId,
    pub(super) writes: bool,
    /// How often it had anything of what it was asked for.
    presence: f64,
    /// Bytes that travel for one of a block.
    shrink: f64,
    pub(super) health: WriteHealth,
}

/// The cost model and what the planner adds to it.
pub(super) struct Slow {
    pub(super) cost: CostModel,
    tokens_per_block: u32,
    pub(super) block_bytes: u64,
    pub(super) nvme: Option<SourceId>,
    pub(super) remotes: Vec<Remote>,
    dice: u64,
    pub(super) probes: SlotMap<DefaultKey, ProbeRun>,
    /// Reused by decisions.
    offers: Vec<Offer>,
    /// Computed blocks that wait to be stored remotely, oldest first.
    pub(super) to_put: VecDeque<(NodeId, BlockKey)>,
    pub(super) puts_in_flight: u32,
    pub(super) put_calls_in_flight: u32,
}

/// What the rule makes of what NVMe has of a request.
pub(super) struct Weighed {
    /// Blocks of the local prefix that are used.
    pub(super) used: usize,
    pub(super) loads: Box<Loads>,
    /// To be made of those that are not, once the others are pinned.
    pub(super) probe: Option<Probe>,
}

/// What the rule makes of what remote stores may have of a request.
struct RemoteDecision {
    load: Option<(RemoteId, Stake)>,
    why: Explanation,
    probe: Option<(RemoteId, Probe)>,
}

impl Slow {
    pub(super) fn new(config: &SlowSources) -> Result<Self, ConfigError> {
        let cost = CostModel::new(config.cost())?;
        let remotes = config.remotes.iter().filter_map(|remote| {
            Some(Remote {
                source: cost.source(&remote.name)?,
                writes: remote.writes,
                presence: 0.5,
                shrink: 1.0,
                health: WriteHealth::default(),
            })
        });
        Ok(Self {
            remotes: remotes.collect(),
            nvme: config.nvme.and_then(|_| cost.source(SlowSources::NVME)),
            cost,
            tokens_per_block: config.tokens_per_block,
            block_bytes: config.block_bytes.0,
            dice: config.seed,
            probes: SlotMap::new(),
            offers: Vec::new(),
            to_put: VecDeque::new(),
            puts_in_flight: 0,
            put_calls_in_flight: 0,
        })
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    pub(super) fn roll(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.dice ^ (self.dice >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn range(&self, blocks: Range<u32>) -> TokenRange {
        let tokens = |blocks: u32| blocks.saturating_mul(self.tokens_per_block);
        TokenRange::new(tokens(blocks.start), tokens(blocks.end))
    }

    pub(super) fn ask(&self, blocks: Range<u32>, chain: u32) -> Ask {
        let prompt_end = Tokens(chain.saturating_mul(self.tokens_per_block));
        Ask { range: self.range(blocks), prompt_end, when_late: WhenLate::GiveUp }
    }

    pub(super) fn raw(&self, blocks: usize) -> LoadSize {
        LoadSize::raw(Bytes(blocks as u64 * self.block_bytes))
    }

    pub(super) fn remote_size(&self, remote: &Remote, blocks: u32) -> LoadSize {
        let raw = Bytes(u64::from(blocks) * self.block_bytes);
        let encoded = remote.shrink < 0.99;
        let bytes = if encoded { Bytes((raw.0 as f64 * remote.shrink) as u64) } else { raw };
        LoadSize { bytes, decoded: encoded.then_some(raw), ..LoadSize::raw(raw) }
    }

    /// How many of `blocks` blocks to ask about: as many as some source is known well enough for, so that loads grow with
    /// what is known. All of them while nothing is, for the sake of probes.
    fn within_knowledge(&self, sources: impl Iterator<Item = SourceId>, blocks: u32) -> u32 {
        let known = sources.filter_map(|source| self.cost.largest_known(source)).max();
        let known = known.map(|bytes| bytes.0 / self.block_bytes.max(1)).filter(|known| *known > 0);
        known.map_or(blocks, |known| blocks.min(u32::try_from(known).unwrap_or(u32::MAX)))
    }

    /// The store behind a source of the cost model.
    fn remote_of(&self, source: SourceId) -> Option<RemoteId> {
        self.remotes.iter().position(|r| r.source == source).map(|i| RemoteId(i as u8))
    }

    pub(super) fn remote(&mut self, id: RemoteId) -> Option<&mut Remote> {
        self.remotes.get_mut(usize::from(id.0))
    }

    /// A load of `blocks`, if the rule admits one, from the stores that are not in `tried`; the explanation, and a
    /// probe to be made beside it.
    fn decide_remote(&mut self, now: Nanos, blocks: Range<u32>, chain: u32, tried: u16) -> RemoteDecision {
        let sources = self.remotes.iter().map(|r| r.source);
        let count = self.within_knowledge(sources, blocks.end - blocks.start);
        let blocks = blocks.start..blocks.start + count;
        let ask = self.ask(blocks.clone(), chain);
        let mut offers = std::mem::take(&mut self.offers);
        offers.clear();
        let anyway = self.roll().is_multiple_of(LOOK_ANYWAY);
        let open = self.remotes.iter().enumerate();
        let open = open.filter(|(i, r)| tried & (1 << i) == 0 && (anyway || r.presence >= HARDLY_EVER));
        offers.extend(open.map(|(_, r)| Offer { source: r.source, size: self.remote_size(r, count) }));
        let dice = self.roll();
        let decision = self.cost.decide(now, &ask, &offers, dice);
        self.offers = offers;
        let load = decision.load.and_then(|load| {
            let remote = self.remote_of(load.source)?;
            let hedge = load.hedge.and_then(|hedge| {
                let remote = self.remote_of(hedge.source)?;
                Some(Hedged { ticket: hedge.ticket, remote, after: now + hedge.after })
            });
            let mut stake = Stake::new(load.ticket, now, now + load.deadline, blocks);
            stake.hedge = hedge;
            Some((remote, stake))
        });
        let probe = decision.probe.and_then(|probe| Some((self.remote_of(probe.source)?, probe)));
        RemoteDecision { load, why: decision.why, probe }
    }

    /// Whether a store is likely enough to have something that it is worth asking.
    fn worth_asking(&mut self, remote: RemoteId, why: &Explanation) -> bool {
        let anyway = self.roll().is_multiple_of(LOOK_ANYWAY);
        let presence = self.remote(remote).map_or(0.0, |r| r.presence);
        let gain = why.source.map_or(0.0, |s| presence * (why.recompute.expected - s.cost));
        anyway || gain > (1.0 - presence) * why.source.map_or(0.0, |s| s.load.lookup)
    }

    pub(super) fn saw_presence(&mut self, remote: RemoteId, there: bool) {
        if let Some(remote) = self.remote(remote) {
            remote.presence += FOLLOW * (f64::from(u8::from(there)) - remote.presence);
        }
    }

    /// So many bytes travelled for `blocks` blocks.
    pub(super) fn saw_wire(&mut self, remote: RemoteId, wire: Bytes, blocks: usize) {
        let raw = blocks as f64 * self.block_bytes as f64;
        if let Some(remote) = self.remote(remote).filter(|_| raw > 0.0 && wire.0 > 0) {
            remote.shrink += FOLLOW * ((wire.0 as f64 / raw).min(1.0) - remote.shrink);
        }
    }
}

impl Planner {
    /// A pass of prefill over `range` has ended after `took`: what the runtime owes the cost model, once for every
    /// pass that was completed, also for one that followed a load. Without slow sources it does nothing.
    pub fn observed_prefill(&mut self, now: Nanos, range: TokenRange, took: Nanos) {
        if let Some(slow) = &mut self.slow {
            slow.cost.observed_prefill(now, range, took);
        }
    }

    /// The cost model, if there are slow sources.
    #[must_use]
    pub fn cost(&self) -> Option<&CostModel> {
        self.slow.as_ref().map(|slow| &slow.cost)
    }

    /// Takes over what an earlier process has learnt; see [`CostModel::restore`].
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has changed.
    pub fn restore_cost(&mut self, now: Nanos, bytes: &[u8]) -> Result<(), RestoreError> {
        self.slow.as_mut().map_or(Ok(()), |slow| slow.cost.restore(now, bytes))
    }

    /// Why an open request loads or recomputes; `None` if no slow source was asked about.
    #[must_use]
    pub fn why(&self, request: RequestId) -> Option<Reasons> {
        Some(self.requests.get(request_key(request))?.loads.as_ref()?.why)
    }

    /// Asks the rule about what look-up found on NVMe.
    pub(super) fn weigh_nvme(&mut self, now: Nanos, chain: u32, nodes: &[NodeId]) -> Option<Weighed> {
        let slow = self.slow.as_mut()?;
        let source = slow.nvme?;
        let is_slow = |node: &&NodeId| self.index.best_tier(**node) == Some(Tier::Nvme);
        let from = nodes.iter().position(|node| is_slow(&node))?;
        let all = nodes.iter().filter(is_slow).count();
        let count = slow.within_knowledge([source].into_iter(), all as u32) as usize;
        let beyond = nodes.iter().enumerate().filter(|(_, node)| is_slow(node)).nth(count);
        let end = beyond.map_or(nodes.len(), |(i, _)| i);
        let offer = Offer { source, size: slow.raw(count) };
        let blocks = from as u32..end as u32;
        let ask = slow.ask(blocks.clone(), chain);
        let dice = slow.roll();
        let decision = slow.cost.decide(now, &ask, &[offer], dice);
        let mut loads = Box::<Loads>::default();
        loads.why.nvme = Some(decision.why);
        loads.nvme = decision.load.map(|load| Stake::new(load.ticket, now, now + load.deadline, blocks));
        let counter =
            if loads.nvme.is_some() { &mut self.stats.loads_admitted } else { &mut self.stats.loads_refused };
        *counter += 1;
        Some(Weighed { used: if loads.nvme.is_some() { end } else { from }, loads, probe: decision.probe })
    }

    /// Asks the rule about what follows the local prefix of a request; with a load in prospect asks the store what it
    /// has of it.
    pub(super) fn ask_remote(&mut self, now: Nanos, id: DefaultKey, tried: u16, out: &mut Outbox) {
        let Some(slow) = self.slow.as_mut().filter(|slow| !slow.remotes.is_empty()) else { return };
        let Some(request) = self.requests.get_mut(id) else { return };
        let blocks = request.matched..request.granted;
        if blocks.is_empty() || request.limit < request.matched {
            return;
        }
        let chain = request.blocks.len() as u32;
        let RemoteDecision { load, why, probe } = slow.decide_remote(now, blocks.clone(), chain, tried);
        let loads = request.loads.get_or_insert_default();
        loads.why.remote = Some(why);
        let load = load.and_then(|(remote, stake)| {
            if slow.worth_asking(remote, &why) {
                return Some((remote, stake));
            }
            slow.settle(now, stake, End::Cancelled, &mut loads.charged);
            None
        });
        match load {
            Some((remote, stake)) => self.look_up(id, remote, stake, tried, out),
            None => self.stats.loads_refused += 1,
        }
        if let Some((remote, probe)) = probe {
            self.probe_remote(now, id, remote, probe, out);
        }
    }

    /// The rule's word on fewer blocks than were hoped for, from one store.
    pub(super) fn decide_again(
        &mut self,
        now: Nanos,
        id: DefaultKey,
        remote: RemoteId,
        blocks: Range<u32>,
    ) -> Option<Stake> {
        let slow = self.slow.as_mut()?;
        let request = self.requests.get_mut(id)?;
        let others = !(1 << remote.0);
        let RemoteDecision { load, why, probe } =
            slow.decide_remote(now, blocks, request.blocks.len() as u32, others);
        request.loads.get_or_insert_default().why.remote = Some(why);
        if let Some((_, probe)) = probe {
            slow.cost.settle(now, probe.ticket, Outcome::NotStarted);
        }
        Some(load?.1)
    }
}
