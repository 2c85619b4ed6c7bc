//! Probes: reads that nobody waits for, so that a source which is not used stays measured. What they read is not kept.

use super::inflight::{GetOwner, InFlight, ReadFrom};
use super::slow::Slow;
use super::{Outbox, Planner, job_id};
use crate::cost::{LoadTimes, Outcome, Probe, Ticket};
use crate::ids::RemoteId;
use crate::index::NodeId;
use crate::job::{Job, Op, RemoteRead, TransferError, Urgency};
use crate::tier::Tier;
use crate::units::{Bytes, Nanos};
use slotmap::DefaultKey;

/// A probe may take this share of the host tier at most (one part in...): a hung source keeps its slots to the end.
const PROBE_SHARE: u32 = 8;

/// Names a probe under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeId(pub(super) DefaultKey);

/// A read that nobody waits for.
#[derive(Debug)]
pub(super) struct ProbeRun {
    ticket: Ticket,
    since: Nanos,
    pub(super) decode: Nanos,
    pending: u32,
    /// Of the first block that did not come.
    error: Option<TransferError>,
    /// Where it reads from, unless that is NVMe.
    remote: Option<RemoteId>,
}

impl ProbeRun {
    fn new(ticket: Ticket, since: Nanos, remote: Option<RemoteId>) -> Self {
        Self { ticket, since, decode: Nanos(0), pending: 0, error: None, remote }
    }
}

impl Slow {
    pub(super) fn probe(&mut self, id: ProbeId) -> Option<&mut ProbeRun> {
        self.probes.get_mut(id.0)
    }

    /// Blocks of a probe that may be read at most.
    fn probe_blocks(&self, bytes: Bytes, host_slots: u32) -> u32 {
        let blocks = bytes.0.div_ceil(self.block_bytes.max(1)).max(1);
        u32::try_from(blocks).unwrap_or(u32::MAX).min((host_slots / PROBE_SHARE).max(1))
    }
}

impl Planner {
    /// Registers a probe whose blocks are about to be asked for.
    pub(super) fn begin_probe(
        &mut self,
        now: Nanos,
        probe: Probe,
        remote: Option<RemoteId>,
    ) -> Option<(ProbeId, u32)> {
        let slow = self.slow.as_mut()?;
        let most = slow.probe_blocks(probe.bytes, self.host.capacity());
        Some((ProbeId(slow.probes.insert(ProbeRun::new(probe.ticket, now, remote))), most))
    }

    /// Reads the first blocks that NVMe has, for nobody.
    pub(super) fn probe_nvme(&mut self, now: Nanos, nodes: &[NodeId], probe: Probe, out: &mut Outbox) {
        let Some((probe, most)) = self.begin_probe(now, probe, None) else { return };
        let mut reads = 0;
        for node in nodes.iter().take(most as usize) {
            let Some(slot) = self.index.ready_slot(*node, Tier::Nvme) else { break };
            let Some(log) = &mut self.log else { break };
            let (source, place) = (log.read(slot), log.place(slot));
            let expect = self.identity(*node, place.generation);
            let Some(target) = self.allocate(Tier::Host, now, out) else {
                self.end_reading(source);
                break;
            };
            let host = target.slot();
            let read = InFlight::Probe { probe, source: ReadFrom::Log(source), target };
            let id = job_id(self.jobs.insert(read));
            out.jobs.push(Job { id, op: Op::Read { place, host, expect }, urgency: Urgency::WriteBack });
            reads += 1;
        }
        self.probe_begun(now, probe, reads);
    }

    /// So many blocks of a probe are on their way.
    pub(super) fn probe_begun(&mut self, now: Nanos, id: ProbeId, blocks: u32) {
        let Some(slow) = &mut self.slow else { return };
        let bytes = Bytes(u64::from(blocks) * slow.block_bytes);
        if blocks == 0 {
            if let Some(run) = slow.probes.remove(id.0) {
                slow.cost.settle(now, run.ticket, Outcome::NotStarted);
            }
        } else if let Some(run) = slow.probes.get_mut(id.0) {
            self.stats.probes += 1;
            run.pending = blocks;
            slow.cost.resize(now, &mut run.ticket, bytes);
        }
    }

    /// A block of a probe has come, or not.
    pub(super) fn probe_part_ended(&mut self, now: Nanos, id: ProbeId, result: Result<(), TransferError>) {
        let Some(slow) = &mut self.slow else { return };
        let Some(run) = slow.probes.get_mut(id.0) else { return };
        run.error = run.error.or(result.err());
        run.pending = run.pending.saturating_sub(1);
        if run.pending > 0 {
            return;
        }
        let Some(run) = slow.probes.remove(id.0) else { return };
        if let Some(remote) = run.remote
            && let None | Some(TransferError::Absent) = run.error
        {
            slow.saw_presence(remote, run.error.is_none());
        }
        let ran = now - run.since;
        let outcome = match run.error {
            None => {
                let times =
                    LoadTimes { transfer: ran - run.decode, decode: run.decode, ..LoadTimes::default() };
                Outcome::Arrived { waited: ran, times }
            }
            Some(TransferError::Late) => Outcome::TooLate { waited: ran, ran },
            // Nobody had said that it was there.
            Some(TransferError::Absent | TransferError::Down) => Outcome::Cancelled { waited: ran },
            Some(_) => Outcome::Failed { waited: ran },
        };
        slow.cost.settle(now, run.ticket, outcome);
    }

    /// Reads the first blocks that a request has not found here, for nobody. They are not kept: the request may be about
    /// to bring, or to compute, the very same.
    pub(super) fn probe_remote(
        &mut self,
        now: Nanos,
        id: DefaultKey,
        remote: RemoteId,
        probe: Probe,
        out: &mut Outbox,
    ) {
        let deadline = now + probe.deadline;
        let Some((probe, most)) = self.begin_probe(now, probe, Some(remote)) else { return };
        let Some(request) = self.requests.get(id) else { return };
        let (namespace, from) = (request.namespace, request.matched as usize);
        let keys = request.blocks[from..].iter().take(most as usize).map(|b| b.key);
        let expected: Vec<_> = keys.map(|key| self.remote_identity(namespace, key)).collect();
        let mut reads = Vec::with_capacity(expected.len());
        for expect in expected {
            let Some(target) = self.allocate(Tier::Host, now, out) else { break };
            let host = target.slot();
            let read = InFlight::Probe { probe, source: ReadFrom::Remote, target };
            reads.push(RemoteRead { job: job_id(self.jobs.insert(read)), expect, host });
        }
        self.probe_begun(now, probe, reads.len() as u32);
        self.call_get(remote, reads, None, GetOwner::Probe(probe), deadline, Urgency::WriteBack, out);
    }
}
