//! The planner against a naive world: slots and records hold the name of what was last written there,
//! hands finish in any order and fail at will, and remote stores lie besides. Whatever a request is told to be
//! ready must really be the block it asked for, and the books must balance after every step, those of the ledger
//! too: never worse than recomputing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kv_core::Verified;
use kv_core::cost::{TokenRange, priors};
use kv_core::ids::{JobId, RequestId, SlotId};
use kv_core::index::NamespaceIndex;
use kv_core::job::{
    Job, Op, Place, RecoveredRecord, RecoveredSegment, RemoteAnswer, RemoteJob, RemoteOp, TransferError,
};
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::planner::{
    LogShape, Outbox, Planner, PlannerConfig, PlannerError, PlannerStats, RemoteSource, Removal, SlowSources,
};
use kv_core::policy::PolicyKind;
use kv_core::tier::Tier;
use kv_core::units::{Bytes, Epoch, Generation, Nanos};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

/// What a slot or record holds; `GARBAGE` while somebody is writing to it.
type Content = u128;
const GARBAGE: Content = 0;

#[derive(Clone, Debug)]
enum Step {
    /// A request for the first `len` blocks of conversation `chain`, which shares its first blocks with
    /// another one.
    Acquire {
        chain: u8,
        len: u8,
        patience: u16,
    },
    /// The n-th open request ends, having computed a share of its blocks.
    Commit {
        nth: u8,
        share: u8,
    },
    Cancel {
        nth: u8,
    },
    /// Blocks `from..len` of a conversation are taken out.
    Remove {
        chain: u8,
        from: u8,
        len: u8,
    },
    /// The n-th job in flight ends.
    Finish {
        nth: u8,
        how: How,
    },
    /// The n-th job in flight is reported twice.
    FinishTwice {
        nth: u8,
    },
    /// The n-th call to a remote store ends.
    Answer {
        nth: u8,
        how: Reply,
    },
    Pass {
        millis: u16,
    },
    /// Everything in flight is lost and the planner starts again from the log.
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Well,
    Io,
    Refused,
    NoSpace,
    /// Failed, and what is at the destination changes at any later time.
    InDoubt,
}

/// What a remote store, or the hand that asks it, makes of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Well,
    /// Says to have everything.
    Lie,
    /// Leaves blocks out.
    Short,
    /// Of another kind than what was asked.
    OfAnotherKind,
    Late,
    /// Not even begun.
    Refused,
    Broken,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![40 => Just(How::Well), 1 => Just(How::Io), 1 => Just(How::Refused), 1 => Just(How::NoSpace), 1 => Just(How::InDoubt)];
    let reply = prop_oneof![
        30 => Just(Reply::Well), 2 => Just(Reply::Lie), 1 => Just(Reply::Short), 1 => Just(Reply::OfAnotherKind),
        1 => Just(Reply::Late), 1 => Just(Reply::Refused), 1 => Just(Reply::Broken),
    ];
    let step = prop_oneof![
        8 => (0..6u8, 1..12u8, 0..50u16).prop_map(|(chain, len, patience)| Step::Acquire { chain, len, patience }),
        9 => (any::<u8>(), any::<u8>()).prop_map(|(nth, share)| Step::Commit { nth, share }),
        1 => any::<u8>().prop_map(|nth| Step::Cancel { nth }),
        1 => (0..6u8, 0..8u8, 1..12u8).prop_map(|(chain, from, len)| Step::Remove { chain, from, len }),
        30 => (any::<u8>(), how).prop_map(|(nth, how)| Step::Finish { nth, how }),
        1 => any::<u8>().prop_map(|nth| Step::FinishTwice { nth }),
        12 => (any::<u8>(), reply).prop_map(|(nth, how)| Step::Answer { nth, how }),
        2 => (0..200u16).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..400)
}

/// Conversations 0 and 1 share four blocks, 2 and 3 share two, the rest nothing.
fn chain(id: u8, len: u8) -> Vec<BlockKey> {
    let shared = [4, 4, 2, 2, 0, 0][usize::from(id)];
    (0..len)
        .map(|i| {
            let owner = if i < shared { 100 + id / 2 } else { id };
            BlockKey::from_bytes(
                (0xABCD_0000_0000_0000_0000_u128 + u128::from(owner) * 256 + u128::from(i)).to_le_bytes(),
            )
        })
        .collect()
}

fn content(key: BlockKey) -> Content {
    u128::from_le_bytes(key.to_bytes())
}

#[derive(Default)]
struct World {
    hbm: HashMap<SlotId, Content>,
    host: HashMap<SlotId, Content>,
    /// By segment and index: generation, content, and the record that was written.
    nvme: HashMap<(u32, u32), (Generation, Content, RecoveredRecord)>,
    opened: HashMap<u32, Generation>,
    /// What each remote store has.
    remote: [HashSet<BlockKey>; 2],
    /// Must not be used again.
    in_doubt: HashSet<(Tier, SlotId)>,
}

/// The slot that a job writes to.
fn destination(op: &Op) -> Option<(Tier, SlotId)> {
    match *op {
        Op::Offload { host, .. } | Op::Read { host, .. } => Some((Tier::Host, host)),
        Op::Onboard { hbm, .. } => Some((Tier::Hbm, hbm)),
        _ => None,
    }
}

struct Open {
    id: RequestId,
    keys: Vec<BlockKey>,
    ready: Option<(u32, u32)>,
}

struct Rig {
    config: PlannerConfig,
    planner: Planner,
    namespace: NamespaceIndex,
    world: World,
    now: Nanos,
    jobs: Vec<Job>,
    calls: Vec<RemoteJob>,
    open: Vec<Open>,
    done: Vec<JobId>,
    out: Outbox,
    hits: u64,
}

impl Rig {
    fn new(config: PlannerConfig) -> Self {
        let mut planner = Planner::new(config.clone()).unwrap();
        let namespace = planner.namespace(NamespaceId([1; 16]), Fingerprint([2; 16]), Epoch(0)).unwrap();
        Self {
            config,
            planner,
            namespace,
            world: World::default(),
            now: Nanos(0),
            jobs: Vec::new(),
            calls: Vec::new(),
            open: Vec::new(),
            done: Vec::new(),
            out: Outbox::default(),
            hits: 0,
        }
    }

    fn top(&mut self) -> &mut HashMap<SlotId, Content> {
        if self.planner.top() == Tier::Hbm { &mut self.world.hbm } else { &mut self.world.host }
    }

    /// Starts the jobs and takes the replies of the outbox.
    fn settle(&mut self) {
        for job in std::mem::take(&mut self.out.jobs) {
            assert!(destination(&job.op).is_none_or(|to| !self.world.in_doubt.contains(&to)), "{job:?}");
            match job.op {
                Op::Offload { host, .. } | Op::Read { host, .. } => {
                    self.world.host.insert(host, GARBAGE);
                }
                Op::Onboard { hbm, .. } => {
                    self.world.hbm.insert(hbm, GARBAGE);
                }
                Op::Write { place, record, .. } => {
                    assert_eq!(
                        self.world.opened.get(&place.segment.0),
                        Some(&place.generation),
                        "written before opened"
                    );
                    let slot = (place.segment.0, place.index);
                    let old = self.world.nvme.get(&slot);
                    assert!(old.is_none_or(|o| o.0 < place.generation), "{place:?} written twice");
                    let found = RecoveredRecord { place, meta: record };
                    self.world.nvme.insert(slot, (place.generation, GARBAGE, found));
                }
                // Records of the segment's earlier life stay on the disk until they are written over.
                Op::OpenSegment { .. } | Op::SealSegment { .. } => {}
            }
            self.jobs.push(job);
        }
        for call in std::mem::take(&mut self.out.remote_jobs) {
            assert!(call.deadline > self.now, "{call:?}");
            if let RemoteOp::Get { reads, .. } = &call.op {
                for read in reads {
                    assert!(!self.world.in_doubt.contains(&(Tier::Host, read.host)), "{call:?}");
                    self.world.host.insert(read.host, GARBAGE);
                }
            }
            self.calls.push(call);
            let puts = self.calls.iter().filter(|call| matches!(call.op, RemoteOp::Put(_))).count();
            assert!(puts <= 8 + 1, "a store that takes 64 calls has room for loads");
        }
        for reply in std::mem::take(&mut self.out.replies) {
            let at = self.open.iter().position(|o| o.id == reply.request).unwrap();
            assert!(self.open[at].ready.is_none(), "answered twice");
            assert!(reply.ready <= reply.granted && reply.granted as usize <= self.open[at].keys.len());
            let slots: Vec<_> = self.planner.slots(reply.request).unwrap().collect();
            assert_eq!(slots.len(), reply.granted as usize);
            let keys = self.open[at].keys.clone();
            for (i, key) in keys.iter().enumerate().take(reply.granted as usize) {
                let slot = slots[i].expect("a granted block of an answered request has a slot");
                assert!(!self.world.in_doubt.contains(&(self.planner.top(), slot)));
                if i < reply.ready as usize {
                    assert_eq!(self.top()[&slot], content(*key), "block {i} is not what was stored");
                } else {
                    self.top().insert(slot, GARBAGE); // the runtime starts computing into it
                }
            }
            self.hits += u64::from(reply.ready);
            self.open[at].ready = Some((reply.ready, reply.granted));
        }
        self.out.clear();
        self.planner.audit().unwrap();
        if let Some(cost) = self.planner.cost() {
            let balance = cost.balance();
            assert!(balance.actual + balance.reserved <= balance.limit(), "{balance:?}");
        }
    }

    fn answer(&mut self, nth: usize, how: Reply) {
        let call = self.calls.remove(nth);
        let error = match how {
            Reply::Late => Some(TransferError::Late),
            Reply::Refused => Some(TransferError::Down),
            Reply::Broken => Some(TransferError::Io(104)),
            _ => None,
        };
        let store = &self.world.remote[usize::from(call.remote.0)];
        let answer = match &call.op {
            _ if how == Reply::Refused => {
                self.planner.complete(self.now, call.id, Err(TransferError::Down), &mut self.out);
                return self.settle();
            }
            RemoteOp::Exists(_) if how == Reply::OfAnotherKind => RemoteAnswer::Put(Vec::new()),
            _ if how == Reply::OfAnotherKind => RemoteAnswer::Exists(Ok(3)),
            RemoteOp::Exists(blocks) => RemoteAnswer::Exists(match error {
                Some(error) => Err(error),
                None if how == Reply::Lie => Ok(blocks.len() as u32 + 1),
                None => Ok(blocks.iter().take_while(|b| store.contains(&b.key)).count() as u32),
            }),
            RemoteOp::Get { reads, .. } => {
                let mut blocks = Vec::new();
                for read in reads.iter().skip(usize::from(how == Reply::Short)) {
                    let found = error.map_or(Ok(()), Err).and_then(|()| {
                        store.contains(&read.expect.key).then_some(()).ok_or(TransferError::Absent)
                    });
                    blocks.push((
                        read.job,
                        found.map(|()| {
                            self.world.host.insert(read.host, content(read.expect.key));
                            Verified::by_status(read.job, 1, 1).unwrap()
                        }),
                    ));
                }
                // Somebody else's job has no business here.
                blocks.extend(self.done.first().map(|job| (*job, Err(TransferError::NoSpace))));
                RemoteAnswer::Get { blocks, wire: Bytes(5000), decode: Nanos(1000), by: call.remote }
            }
            RemoteOp::Put(writes) => {
                for write in writes {
                    let bytes = self.world.host[&write.host];
                    assert_eq!(bytes, content(write.record.identity.key), "stored under another's name");
                }
                let count = writes.len() - usize::from(how == Reply::Short);
                if error.is_none() {
                    let stored = writes[..count].iter().map(|w| w.record.identity.key);
                    self.world.remote[usize::from(call.remote.0)].extend(stored);
                }
                RemoteAnswer::Put(vec![error.map_or(Ok(()), Err); count])
            }
        };
        self.planner.remote_complete(self.now, call.id, answer, &mut self.out);
        self.settle();
    }

    fn finish(&mut self, nth: usize, how: How) {
        let job = self.jobs.remove(nth);
        let result = match how {
            How::Well => self.perform(&job.op).and_then(|()| Ok(Verified::by_status(job.id, 1, 1)?)),
            How::Io => Err(TransferError::Io(5)),
            How::Refused => Err(TransferError::Refused(kv_core::Mismatch::Checksum)),
            How::NoSpace => Err(TransferError::NoSpace),
            How::InDoubt => {
                self.world.in_doubt.extend(destination(&job.op));
                Err(TransferError::InDoubt)
            }
        };
        self.done.push(job.id);
        self.planner.complete(self.now, job.id, result, &mut self.out);
        self.settle();
    }

    /// What an honest hand does. The reads happen as late as they can.
    fn perform(&mut self, op: &Op) -> Result<(), TransferError> {
        let world = &mut self.world;
        match *op {
            Op::Offload { hbm, host } => {
                let bytes = world.hbm[&hbm];
                assert_ne!(bytes, GARBAGE, "copied while being written");
                world.host.insert(host, bytes);
            }
            Op::Onboard { host, hbm } => {
                let bytes = world.host[&host];
                assert_ne!(bytes, GARBAGE, "copied while being written");
                world.hbm.insert(hbm, bytes);
            }
            Op::Write { host, place, record } => {
                let bytes = world.host[&host];
                assert_eq!(
                    bytes,
                    content(record.identity.key),
                    "a record would get other bytes than its name says"
                );
                let found = RecoveredRecord { place, meta: record };
                world.nvme.insert((place.segment.0, place.index), (place.generation, bytes, found));
            }
            Op::Read { place: Place { segment, generation, index }, host, expect } => {
                let Some((written, bytes, record)) = world.nvme.get(&(segment.0, index)) else {
                    return Err(TransferError::Refused(kv_core::Mismatch::Identity));
                };
                assert_eq!(
                    (*written, record.meta.identity),
                    (generation, expect),
                    "the planner asked for a record that is gone"
                );
                world.host.insert(host, *bytes);
            }
            Op::OpenSegment { segment, generation } => {
                let before = world.opened.insert(segment.0, generation);
                assert!(before.is_none_or(|b| b < generation), "generations must grow");
            }
            Op::SealSegment { .. } => {}
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Acquire { chain: id, len, patience } => {
                let keys = chain(id, len);
                let found = self.planner.lookup(self.namespace, &keys).blocks;
                let deadline = self.now + Nanos::from_millis(u64::from(patience));
                let id =
                    self.planner.acquire(self.now, self.namespace, &keys, deadline, &mut self.out).unwrap();
                self.open.push(Open { id, keys, ready: None });
                self.settle();
                if let Some((ready, _)) = self.open.last().unwrap().ready {
                    let slow = self.config.slow.as_ref();
                    let found = if slow.is_some_and(|s| !s.remotes.is_empty()) { u32::MAX } else { found };
                    assert!(ready <= found);
                }
            }
            Step::Commit { nth, share } => {
                if self.open.is_empty() {
                    return;
                }
                let at = usize::from(nth) % self.open.len();
                let (id, answer) = (self.open[at].id, self.open[at].ready);
                let Some((ready, granted)) = answer else {
                    let refused = self.planner.commit(self.now, id, 0, &mut self.out);
                    assert_eq!(refused, Err(PlannerError::NotReady(id)));
                    return;
                };
                let computed =
                    if share < 160 { granted } else { ready + u32::from(share) % (granted - ready + 1) };
                let keys = self.open[at].keys.clone();
                let slots: Vec<_> = self.planner.slots(id).unwrap().collect();
                for i in 0..computed as usize {
                    let slot = slots[i].unwrap();
                    if i < ready as usize {
                        assert_eq!(
                            self.top()[&slot],
                            content(keys[i]),
                            "a pinned block changed under its reader"
                        );
                    } else {
                        self.top().insert(slot, content(keys[i]));
                    }
                }
                let too_many = self.planner.commit(self.now, id, granted + 1, &mut self.out);
                assert!(matches!(too_many, Err(PlannerError::BadComputed { .. })));
                self.planner.commit(self.now, id, computed, &mut self.out).unwrap();
                if computed > ready {
                    let range = TokenRange::new(ready * TOKENS, computed * TOKENS);
                    let took = Nanos::from_millis(u64::from(300 * (computed - ready)));
                    self.planner.observed_prefill(self.now, range, took);
                }
                self.open.remove(at);
                self.settle();
            }
            Step::Cancel { nth } => {
                if self.open.is_empty() {
                    return;
                }
                let open = self.open.remove(usize::from(nth) % self.open.len());
                self.planner.cancel(self.now, open.id).unwrap();
                assert_eq!(
                    self.planner.cancel(self.now, open.id),
                    Err(PlannerError::UnknownRequest(open.id))
                );
                self.settle();
            }
            Step::Remove { chain: id, from, len } => {
                let keys = &chain(id, len)[usize::from(from.min(len))..];
                let reachable =
                    |rig: &mut Self, key| rig.planner.lookup(rig.namespace, std::slice::from_ref(key)).blocks;
                let before: Vec<_> = keys.iter().map(|key| reachable(self, key)).collect();
                let removed = self.planner.remove(self.namespace, keys, &mut self.out);
                for ((key, before), removed) in keys.iter().zip(before).zip(removed) {
                    let after = reachable(self, key);
                    match removed {
                        Removal::Removed => assert_eq!((before, after), (1, 0)),
                        Removal::Absent => assert_eq!((before, after), (0, 0)),
                        Removal::InUse => assert_eq!(before, after),
                    }
                }
                self.settle();
            }
            Step::Finish { nth, how } => {
                if !self.jobs.is_empty() {
                    self.finish(usize::from(nth) % self.jobs.len(), how);
                }
            }
            Step::FinishTwice { nth } => {
                if let Some(id) = self.done.get(usize::from(nth)) {
                    let stale = self.planner.stats().stale_completions;
                    self.planner.complete(
                        self.now,
                        *id,
                        Ok(Verified::by_status(*id, 1, 1).unwrap()),
                        &mut self.out,
                    );
                    assert_eq!(self.planner.stats().stale_completions, stale + 1);
                    self.settle();
                }
            }
            Step::Answer { nth, how } => {
                if !self.calls.is_empty() {
                    self.answer(usize::from(nth) % self.calls.len(), how);
                }
            }
            Step::Pass { millis } => {
                let end = self.now + Nanos::from_millis(u64::from(millis));
                // The driver is there at every deadline.
                while let Some(due) = self.planner.next_deadline().filter(|due| *due <= end) {
                    self.now = due.max(self.now);
                    self.planner.tick(self.now, &mut self.out);
                    self.settle();
                    // What is not answered by then is left.
                    while let Some(at) = self.calls.iter().position(|call| call.deadline <= self.now) {
                        self.answer(at, Reply::Late);
                    }
                }
                self.now = end;
                self.planner.tick(self.now, &mut self.out);
                self.settle();
                let late = |o: &Open| o.ready.is_none();
                if self.planner.next_deadline().is_none() {
                    assert!(!self.open.iter().any(late));
                }
            }
            Step::Restart => self.restart(),
        }
    }

    fn restart(&mut self) {
        let mut fresh = Self::new(self.config.clone());
        fresh.now = self.now;
        fresh.world.nvme = std::mem::take(&mut self.world.nvme);
        fresh.world.opened = std::mem::take(&mut self.world.opened);
        fresh.world.remote = std::mem::take(&mut self.world.remote);
        fresh.world.nvme.retain(|_, (_, bytes, _)| *bytes != GARBAGE);
        let mut segments: Vec<_> = fresh
            .world
            .opened
            .iter()
            .map(|(segment, generation)| RecoveredSegment {
                segment: kv_core::ids::SegmentId(*segment),
                generation: *generation,
                occupied: fresh.world.nvme.keys().any(|slot| slot.0 == *segment),
            })
            .collect();
        segments.sort_by_key(|s| s.segment);
        let mut records: Vec<_> = fresh.world.nvme.values().map(|(_, _, record)| *record).collect();
        records.sort_by_key(|r| (r.place.segment, r.place.index));
        // Left-overs of an earlier life are refused, and so are second copies.
        let served = fresh.planner.restore(&segments, &records);
        assert!(served <= records.len() as u64);
        fresh.planner.audit().unwrap();
        *self = fresh;
    }

    /// Lets everything end well and checks that nothing is left.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if !self.jobs.is_empty() {
                self.finish(0, How::Well);
            } else if !self.calls.is_empty() {
                self.answer(0, Reply::Well);
            } else if let Some(open) = self.open.pop() {
                assert!(open.ready.is_some(), "no job is left that could answer {:?}", open.id);
                self.planner.cancel(self.now, open.id).unwrap();
                self.settle();
            } else {
                break;
            }
        }
        assert!(self.planner.is_idle(), "left over: {:?}, {:?}", self.jobs, self.planner.stats());
        self.planner.audit().unwrap();
    }
}

/// Tokens of a block.
const TOKENS: u32 = 512;

/// NVMe and two remote stores, of which one is only read from.
fn slow(seed: u64) -> SlowSources {
    let remote = |name: &str, writes| RemoteSource { name: name.to_owned(), link: priors::NETWORK, writes };
    SlowSources {
        tokens_per_block: TOKENS,
        block_bytes: Bytes(8192),
        fingerprint: Fingerprint([2; 16]),
        curve: priors::UNKNOWN,
        nvme: Some(priors::NVME_GEN4),
        remotes: vec![remote("near", true), remote("far", seed.is_multiple_of(2))],
        seed,
    }
}

fn config(hbm: u32, host: u32, nvme: Option<(u32, u32)>, policy: PolicyKind) -> PlannerConfig {
    PlannerConfig {
        hbm_slots: hbm,
        host_slots: host,
        log: nvme.map(|(segments, records_per_segment)| LogShape { segments, records_per_segment }),
        record_bytes: Bytes(8192),
        policy,
        nvme_budget: None,
        max_write_backs: 4,
        slow: None,
    }
}

fn configs() -> impl Strategy<Value = PlannerConfig> {
    let nvme = prop_oneof![
        1 => Just(None),
        4 => (3..5u32, 1..10u32).prop_map(Some),
    ];
    (prop_oneof![Just(0u32), 1..12u32], 1..16u32, nvme, prop::sample::select(PolicyKind::ALL.to_vec()))
        .prop_map(|(hbm, host, nvme, policy)| config(hbm, host, nvme, policy))
}

fn slow_configs() -> impl Strategy<Value = PlannerConfig> {
    (configs(), any::<u64>()).prop_map(|(config, seed)| PlannerConfig { slow: Some(slow(seed)), ..config })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_ready_is_what_was_stored(config in configs(), steps in steps()) {
        let mut rig = Rig::new(config);
        for step in &steps {
            rig.step(step);
        }
        rig.drain();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn slow_sources_change_what_is_ready_but_never_what_it_holds(config in slow_configs(), steps in steps()) {
        let mut rig = Rig::new(config);
        rig.planner.restore_cost(Nanos(0), taught()).unwrap();
        // Another node has been here before.
        rig.world.remote[0] = (0..4).flat_map(|id| chain(id, 12)).collect();
        for step in &steps {
            rig.step(step);
        }
        rig.drain();
    }
}

/// What a planner has learnt that was served well by all its slow sources.
fn taught() -> &'static [u8] {
    static TAUGHT: OnceLock<Vec<u8>> = OnceLock::new();
    TAUGHT.get_or_init(|| {
        let mut silent = slow(8);
        silent.remotes.iter_mut().for_each(|remote| remote.writes = false);
        let host = config(0, 12, None, PolicyKind::Lru);
        let nvme = config(0, 12, Some((8, 16)), PolicyKind::Lru);
        let mut rig = Rig::new(PlannerConfig { slow: Some(silent), ..nvme });
        let stats = serve(&mut rig, 300, 2);
        assert!(stats.hits[Tier::Nvme] > 0, "{stats:?}");
        let learnt = rig.planner.cost().unwrap().snapshot(rig.now);
        let mut rig = Rig::new(PlannerConfig { slow: Some(slow(8)), ..host });
        rig.planner.restore_cost(Nanos(0), &learnt).unwrap();
        let stats = serve(&mut rig, 300, 2);
        assert!(stats.remote_hits > 0, "{stats:?}");
        rig.planner.cost().unwrap().snapshot(rig.now)
    })
}

/// Lets everything under way end well, `ms` later.
fn end_all(rig: &mut Rig, ms: u16) {
    while !(rig.jobs.is_empty() && rig.calls.is_empty()) {
        rig.step(&Step::Pass { millis: ms });
        while !rig.jobs.is_empty() {
            rig.finish(0, How::Well);
        }
        if !rig.calls.is_empty() {
            rig.answer(0, Reply::Well);
        }
    }
}

/// Serves conversations through a small host tier, over and over, and returns the counters.
fn serve(rig: &mut Rig, rounds: usize, ms: u16) -> PlannerStats {
    for round in 0..rounds {
        rig.step(&Step::Acquire { chain: (round % 6) as u8, len: 8, patience: u16::MAX });
        end_all(rig, ms);
        rig.step(&Step::Commit { nth: 0, share: 0 });
        end_all(rig, ms);
        rig.step(&Step::Pass { millis: 1000 });
    }
    *rig.planner.stats()
}

/// What host RAM has lost comes back from the remote store, once the store is measured, to both kinds of top tier.
#[test]
fn a_remote_store_that_helps_is_used() {
    for hbm in [0, 12] {
        let config = PlannerConfig { slow: Some(slow(7)), ..config(hbm, 12, None, PolicyKind::Lru) };
        let mut rig = Rig::new(config);
        let stats = serve(&mut rig, 200, 2);
        assert!(stats.remote_hits > 500, "{stats:?}");
        assert!(stats.remote_writes >= 32 && stats.probes > 0, "{stats:?}");
        let balance = rig.planner.cost().unwrap().balance();
        assert!(balance.actual < balance.recompute_only, "{balance:?}");
        rig.drain();
    }
}

/// A store as slow as recomputing is measured and then left alone, and so is an NVMe tier.
#[test]
fn a_source_that_does_not_help_is_left_alone() {
    let config = PlannerConfig { slow: Some(slow(7)), ..config(0, 12, Some((8, 16)), PolicyKind::Lru) };
    let mut rig = Rig::new(config);
    let stats = serve(&mut rig, 200, 1800);
    assert!(stats.probes > 0, "{stats:?}");
    assert_eq!((stats.remote_hits, stats.hits[Tier::Nvme]), (0, 0), "{stats:?}");
    rig.drain();
}

/// A store that says to have everything and never delivers costs what the ledger allows, and is then hardly asked.
#[test]
fn a_store_that_never_delivers_is_given_up() {
    let config = PlannerConfig { slow: Some(slow(7)), ..config(0, 12, None, PolicyKind::Lru) };
    let mut rig = Rig::new(config);
    serve(&mut rig, 100, 2);
    let before = *rig.planner.stats();
    for round in 0..200_u32 {
        rig.step(&Step::Acquire { chain: (round % 6) as u8, len: 8, patience: u16::MAX });
        // Whatever is asked hangs: every request is answered all the same.
        for _ in 0..100 {
            if rig.open[0].ready.is_some() {
                break;
            }
            rig.step(&Step::Pass { millis: 50 });
        }
        rig.step(&Step::Commit { nth: 0, share: 0 });
    }
    let stats = *rig.planner.stats();
    let asked = stats.remote_lookups - before.remote_lookups;
    assert!(stats.loads_late > 0 && asked < 40, "{asked} of 200 requests asked: {stats:?}");
    assert_eq!(stats.remote_hits, before.remote_hits);
    rig.drain();
}

/// A run with a large NVMe tier and no faults finds again what HBM and host have long lost.
#[test]
fn nvme_serves_what_the_upper_tiers_lost() {
    let mut rig = Rig::new(config(4, 8, Some((8, 16)), PolicyKind::Lru));
    let settle = |rig: &mut Rig| {
        while !rig.jobs.is_empty() {
            rig.finish(0, How::Well);
        }
    };
    for round in 0..3 {
        for chain in 0..6 {
            rig.step(&Step::Acquire { chain, len: 4, patience: 10_000 });
            settle(&mut rig);
            rig.step(&Step::Commit { nth: 0, share: 4 });
            settle(&mut rig);
        }
        if round > 0 {
            assert!(rig.planner.stats().hits[Tier::Nvme] > 0);
        }
    }
    let stats = *rig.planner.stats();
    assert_eq!(stats.lost, 0);
    assert!(stats.hits[Tier::Nvme] >= 20, "{stats:?}");
    rig.drain();
}

/// A caller who presents one tenant's keys as another's gets misses, in every tier and after a restart, and
/// cannot replace the owner's blocks.
#[test]
fn another_namespace_or_epoch_sees_nothing() {
    let mut rig = Rig::new(config(4, 8, Some((4, 8)), PolicyKind::Lru));
    let store = |rig: &mut Rig| {
        rig.step(&Step::Acquire { chain: 0, len: 4, patience: 10_000 });
        while !rig.jobs.is_empty() {
            rig.finish(0, How::Well);
        }
        rig.step(&Step::Commit { nth: 0, share: 0 });
        while !rig.jobs.is_empty() {
            rig.finish(0, How::Well);
        }
    };
    store(&mut rig);
    let (owner, keys) = (rig.namespace, chain(0, 4));
    assert_eq!(rig.planner.lookup(owner, &keys).blocks, 4);

    let fingerprint = Fingerprint([2; 16]);
    let stranger = rig.planner.namespace(NamespaceId([9; 16]), fingerprint, Epoch(0)).unwrap();
    let later = rig.planner.namespace(NamespaceId([1; 16]), fingerprint, Epoch(1)).unwrap();
    for other in [stranger, later] {
        assert_eq!(rig.planner.lookup(other, &keys).blocks, 0);
        rig.namespace = other;
        store(&mut rig);
        assert_eq!(rig.planner.lookup(other, &keys).blocks, 0, "the key is taken");
        assert_eq!(rig.planner.lookup(owner, &keys).blocks, 4);
    }

    rig.restart();
    assert!(rig.planner.lookup(rig.namespace, &keys).blocks > 0, "written to NVMe before");
    let later = rig.planner.namespace(NamespaceId([1; 16]), fingerprint, Epoch(1)).unwrap();
    assert_eq!(rig.planner.lookup(later, &keys).blocks, 0);
}

/// A block that is taken out is gone from every tier at once, unless somebody holds it; it can be stored again.
#[test]
fn what_is_taken_out_is_gone_unless_it_is_in_use() {
    let mut rig = Rig::new(config(0, 12, Some((4, 8)), PolicyKind::Lru));
    let finish_all = |rig: &mut Rig| {
        while !rig.jobs.is_empty() {
            rig.finish(0, How::Well);
        }
    };
    let store = |rig: &mut Rig| {
        rig.step(&Step::Acquire { chain: 4, len: 4, patience: 10_000 });
        finish_all(rig);
        rig.step(&Step::Commit { nth: 0, share: 0 });
    };
    let keys = chain(4, 4);
    store(&mut rig);
    rig.planner.write_back_all(rig.now, &mut rig.out);
    rig.settle();
    while !rig.jobs.iter().any(|job| matches!(job.op, Op::Write { .. })) {
        rig.finish(0, How::Well);
    }
    let being_written = rig.planner.remove(rig.namespace, &keys, &mut rig.out);
    assert_eq!(being_written, [Removal::InUse; 4]);
    finish_all(&mut rig);
    assert_eq!((rig.planner.occupied(Tier::Host), rig.planner.occupied(Tier::Nvme)), (4, 4));

    rig.step(&Step::Acquire { chain: 4, len: 2, patience: 10_000 });
    let removed = rig.planner.remove(rig.namespace, &keys, &mut rig.out);
    assert_eq!(removed, [Removal::InUse, Removal::InUse, Removal::Removed, Removal::Removed]);
    assert_eq!((rig.planner.occupied(Tier::Host), rig.planner.occupied(Tier::Nvme)), (2, 2));
    rig.settle();
    rig.step(&Step::Cancel { nth: 0 });
    // The head alone: what follows it stays, and is found again once the head is back.
    assert_eq!(rig.planner.remove(rig.namespace, &keys[..1], &mut rig.out), [Removal::Removed]);
    assert_eq!(rig.planner.remove(rig.namespace, &keys[2..], &mut rig.out), [Removal::Absent; 2]);
    assert_eq!(rig.planner.lookup(rig.namespace, &keys).blocks, 0);
    rig.settle();
    store(&mut rig);
    finish_all(&mut rig);
    assert_eq!(rig.planner.lookup(rig.namespace, &keys).blocks, 4);
    rig.drain();
}

#[test]
fn the_first_segment_is_opened_early_and_once() {
    let mut rig = Rig::new(config(0, 4, Some((3, 2)), PolicyKind::Lru));
    let openings = |rig: &Rig| rig.out.jobs.iter().filter(|j| matches!(j.op, Op::OpenSegment { .. })).count();
    rig.planner.prepare_write(&mut rig.out);
    rig.planner.prepare_write(&mut rig.out);
    assert_eq!(openings(&rig), 1);
    rig.settle();
    rig.drain();
    rig.planner.prepare_write(&mut rig.out);
    assert_eq!(openings(&rig), 0, "one is in reserve");
    let mut memory_only = Rig::new(config(0, 4, None, PolicyKind::Lru));
    memory_only.planner.prepare_write(&mut memory_only.out);
    assert_eq!(openings(&memory_only), 0);
}

/// Sporadic failures to open segments, never enough in a row to pause the tier, must not use up the log.
#[test]
fn segments_that_could_not_be_opened_come_back() {
    let mut rig = Rig::new(config(0, 4, Some((4, 4)), PolicyKind::Lru));
    let mut opened = 0;
    let mut finish_all = |rig: &mut Rig| {
        while !rig.jobs.is_empty() {
            let open = matches!(rig.jobs[0].op, Op::OpenSegment { .. });
            opened += u32::from(open);
            rig.finish(0, if open && opened.is_multiple_of(2) { How::Io } else { How::Well });
        }
        opened
    };
    let mut half_time = 0;
    for round in 0..400_u32 {
        rig.step(&Step::Acquire { chain: (round % 6) as u8, len: 4, patience: 10_000 });
        finish_all(&mut rig);
        rig.step(&Step::Commit { nth: 0, share: 0 });
        let so_far = finish_all(&mut rig);
        if round == 200 {
            half_time = so_far;
        }
    }
    let opened = finish_all(&mut rig) - half_time;
    assert!(opened > 20, "only {opened} segments were opened in the second half");
    rig.drain();
}
