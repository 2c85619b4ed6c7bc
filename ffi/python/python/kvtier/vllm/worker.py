"""Copies between vLLM's paged tensors and the tiers of one rank.

```text
 submit ─► job: one ticket per store ─► queue ─► get_finished: a batch per step
                                                   load not whole ─► the request recomputes
                                                   store not whole ─► a later miss
```
"""

import time
from dataclasses import dataclass, field

import kvtier
from kvtier.vllm._compat import (
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    OffloadKey,
    TransferResult,
    get_offload_group_idx,
)
from kvtier.vllm.messages import LoadSpec, StoreSpec
from kvtier.vllm.rank import Rank, Tier

_DONE, _PRESENT, _TIMED_OUT = kvtier.KeyStatus.DONE, kvtier.KeyStatus.PRESENT, kvtier.KeyStatus.TIMED_OUT
_THERE = bytes([_DONE, _PRESENT])


@dataclass(slots=True)
class FailedLoad:
    """A load that did not bring every block."""

    request: str
    blocks: set[int]
    """Those that may hold anything."""
    late: bool
    """Its time was over, rather than bytes missing."""


@dataclass(slots=True)
class _Batch:
    """What one store does for a job."""

    tier: Tier
    keys: list[OffloadKey] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    ticket: kvtier.Ticket | None = None
    """None if the store refused."""


@dataclass(slots=True)
class _Job:
    id: int
    request: str | None
    """Whose load it is; none for a store."""
    epoch: int
    batches: list[_Batch]
    waits_for: int = 0
    """Tickets that are not done."""
    began: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class Counts:
    """Since the last time they were taken."""

    blocks_loaded: int = 0
    blocks_stored: int = 0
    blocks_not_stored: int = 0
    loads_failed: int = 0
    loads_late: int = 0


class KvtierWorker(OffloadingWorker):
    """vLLM's worker of one rank."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.counts = Counts()
        self._queue = kvtier.Queue()
        self._jobs: dict[int, _Job] = {}
        self._ended: list[_Job] = []
        """Jobs of which no ticket is under way."""
        self._failed: list[FailedLoad] = []
        self._not_stored: set[OffloadKey] = set()

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Starts to copy blocks out. It always succeeds: what kvtier has no room for is not stored."""
        assert isinstance(dst_spec, StoreSpec)
        # What was computed before the tiers were cleared may come from other weights.
        stale = dst_spec.epoch != self.rank.epoch or not self.rank.usable
        batches = self._batches(dst_spec.keys, src_spec)
        if batches is None:
            self._not_stored.update(dst_spec.keys)
        self._submit(_Job(job_id, None, dst_spec.epoch, batches or []), stale)
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        """Starts to copy blocks in. It always succeeds: what fails is in `take_failed_loads`."""
        assert isinstance(src_spec, LoadSpec)
        batches = self._batches(src_spec.keys, dst_spec)
        if batches is None:
            self._failed.append(FailedLoad(src_spec.request, set(dst_spec.block_ids.tolist()), late=False))
        self._submit(_Job(job_id, src_spec.request, self.rank.epoch, batches or []), refused=False)
        return True

    def get_finished(self) -> list[TransferResult]:
        """What has ended. Failed loads are successes here, as vLLM asserts that; see `take_failed_loads`."""
        for tag, _, _ in self._queue.drain():
            job = self._jobs[tag]
            job.waits_for -= 1
            if job.waits_for == 0:
                self._ended.append(self._jobs.pop(tag))
        ended, self._ended = self._ended, []
        return [self._result(job) for job in ended]

    def wait(self, job_ids: set[int]) -> None:
        """Returns when the jobs do not touch vLLM's blocks any more."""
        for job in filter(None, map(self._jobs.get, job_ids)):
            tickets = [batch.ticket for batch in job.batches if batch.ticket is not None]
            if job.epoch != self.rank.epoch:
                # The tiers were cleared: nobody wants what it brings or takes.
                for ticket in tickets:
                    ticket.cancel()
            for ticket in tickets:
                ticket.wait()

    def take_failed_loads(self) -> list[FailedLoad]:
        """Loads that failed, of those that `get_finished` has reported."""
        failed, self._failed = self._failed, []
        return failed

    def take_not_stored(self) -> set[OffloadKey]:
        """Keys that were not stored, of the stores that `get_finished` has reported."""
        not_stored, self._not_stored = self._not_stored, set()
        return not_stored

    def shutdown(self) -> None:
        """Closes the tiers."""
        self.rank.close()
        self._jobs.clear()

    def _batches(self, keys: list[OffloadKey], blocks: GPULoadStoreSpec) -> list[_Batch] | None:
        """Deals out the keys and their blocks, which are in the same order: one chunk is one block.

        None if they do not match, which would be a case of vLLM's that is not known here.
        """
        if len(keys) != len(blocks.block_ids):
            self.rank.complaints.note("transfers left alone", f"{len(keys)} keys for {len(blocks.block_ids)} blocks")
            return None
        batches = [_Batch(tier) for tier in self.rank.tiers]
        of_group: dict[int, list[_Batch]] = {}
        for key, block in zip(keys, blocks.block_ids.tolist(), strict=True):
            group = get_offload_group_idx(key)
            if group not in of_group:
                of_group[group] = [batches[at] for at, _ in self.rank.of_group(group)]
            for batch in of_group[group]:
                batch.keys.append(key)
                batch.blocks.append(block)
        return [batch for batch in batches if batch.keys]

    def _submit(self, job: _Job, refused: bool) -> None:
        timeout = self.rank.options.timeout
        for batch in job.batches if not refused else ():
            pool = batch.tier.pool
            start = pool.offload if job.request is None else pool.onboard
            with self.rank.surviving("a copy"):
                batch.ticket = start(batch.keys, batch.blocks, timeout=timeout, queue=self._queue, tag=job.id)
                job.waits_for += 1
        if job.waits_for:
            self._jobs[job.id] = job
        else:
            self._ended.append(job)

    def _result(self, job: _Job) -> TransferResult:
        moved = 0
        bad: set[int] = set()
        late = False
        for batch in job.batches:
            statuses = bytes(len(batch.keys)) if batch.ticket is None else batch.ticket.statuses()
            if job.request is not None:
                good = [status == _DONE for status in statuses]
            else:
                good = [status in _THERE for status in statuses]
                self._not_stored.update(key for key, there in zip(batch.keys, good, strict=True) if not there)
            bad.update(block for block, there in zip(batch.blocks, good, strict=True) if not there)
            late |= _TIMED_OUT in statuses
            copied = statuses.count(_DONE)
            moved += copied * batch.tier.part.block_bytes
            if job.request is not None:
                self.counts.blocks_loaded += copied
            else:
                self.counts.blocks_stored += copied
                self.counts.blocks_not_stored += good.count(False)
        if job.request is not None and job.epoch != self.rank.epoch:
            bad = {block for batch in job.batches for block in batch.blocks}
        if job.request is not None and bad:
            self.counts.loads_failed += 1
            self.counts.loads_late += late
            self._failed.append(FailedLoad(job.request, bad, late))
        if not moved:
            return TransferResult(job.id, True)
        return TransferResult(job.id, True, moved, time.perf_counter() - job.began)
