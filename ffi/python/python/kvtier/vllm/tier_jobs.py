"""Transfers between vLLM's CPU tier and the store, from their submission to what vLLM is told of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtier import Busy, Error, KeyStatus, Store, Ticket
from kvtier.vllm._compat import OffloadKey
from kvtier.vllm._tiering import JobResult
from kvtier.vllm.tier_metrics import Counts
from kvtier.vllm.tier_rows import Rows


@dataclass(frozen=True, slots=True)
class Place:
    """How the keys of a store stand to each other."""

    chained: bool
    """They are one chain, first block first: eviction takes its end first, and remote stores get it."""
    parent: OffloadKey | None = None
    """The block before them."""


LOOSE = Place(chained=False)
"""Keys of windows, or with gaps."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that is over."""

    result: JobResult
    request_id: str
    keys: Sequence[OffloadKey]
    loaded: bool
    """Whether it was a load; else it was a store."""
    good: Sequence[OffloadKey]
    """Keys that are in the CPU tier now, or in the store."""
    late: bool = False
    """Some of it took longer than it may."""


@dataclass(slots=True)
class _Job:
    request_id: str
    keys: list[OffloadKey]
    rows: list[int]
    ticket: Ticket
    is_load: bool
    before: int = 0
    """Keys of the ticket that stand before those of the job: the end of the chain that it goes on with."""
    stored: list[OffloadKey] = field(default_factory=list)
    """What an earlier attempt stored."""
    started: float = field(default_factory=time.monotonic)


class Jobs:
    """One ticket for each job of vLLM."""

    def __init__(self, store: Store, rows: Rows, seconds: float, counts: Counts) -> None:
        self._store, self._rows, self._seconds, self._counts = store, rows, seconds, counts
        self._jobs: dict[int, _Job] = {}
        self._ended: list[Ended] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def load(self, job_id: int, request_id: str, keys: list[OffloadKey], rows: list[int]) -> None:
        """Starts copying blocks into rows."""
        try:
            ticket = self._store.get(keys, self._rows.runs(rows), timeout=self._seconds)
        except Error as error:
            self._counts.blocks_not_loaded += len(keys)
            self._refuse(job_id, request_id, keys, True, error)
            return
        self._jobs[job_id] = _Job(request_id, keys, rows, ticket, is_load=True)

    def store(self, job_id: int, request_id: str, keys: list[OffloadKey], rows: list[int], place: Place) -> None:
        """Starts copying rows into the store."""
        try:
            ticket = self._put(keys, rows, place)
        except Error as error:
            self._counts.blocks_not_stored += len(keys)
            self._refuse(job_id, request_id, keys, False, error)
            return
        before = 0 if place.parent is None else 1
        self._jobs[job_id] = _Job(request_id, keys, rows, ticket, is_load=False, before=before)

    def _put(self, keys: list[OffloadKey], rows: list[int], place: Place) -> Ticket:
        if place.parent is None:
            return self._store.put(keys, self._rows.runs(rows), chained=place.chained, timeout=self._seconds)
        # The parent is there already: it has no buffer.
        buffers = [None, *self._rows.pieces(rows)]
        return self._store.put([place.parent, *keys], buffers, chained=True, timeout=self._seconds)

    def _refuse(self, job_id: int, request_id: str, keys: list[OffloadKey], is_load: bool, error: Error) -> None:
        self._counts.jobs_refused += isinstance(error, Busy)
        self._ended.append(Ended(JobResult(job_id, False), request_id, keys, is_load, ()))

    def collect(self) -> list[Ended]:
        """Jobs that are over and were not collected yet."""
        for job_id, job in list(self._jobs.items()):
            if job.ticket.done:
                self._end(job_id, job)
        ended, self._ended = self._ended, []
        return ended

    def drain(self) -> None:
        """Waits for all of them: every operation of a store has a limit of its own. What they came to is not lost."""
        while self._jobs:
            for job_id, job in list(self._jobs.items()):
                job.ticket.wait()
                self._end(job_id, job)

    def cancel(self) -> None:
        """Asks for an early end of all."""
        for job in self._jobs.values():
            job.ticket.cancel()

    def wait(self, seconds: float) -> bool:
        """Whether no memory is in use any more, after so many seconds at most."""
        until = time.monotonic() + seconds
        return all(job.ticket.wait(max(0.0, until - time.monotonic())) is not None for job in self._jobs.values())

    def _end(self, job_id: int, job: _Job) -> None:
        statuses = job.ticket.statuses()[job.before :]
        job.ticket.release()
        if job.is_load:
            self._end_load(job_id, job, statuses)
        else:
            self._end_store(job_id, job, statuses)

    def _end_load(self, job_id: int, job: _Job, statuses: bytes) -> None:
        del self._jobs[job_id]
        good = [key for key, status in zip(job.keys, statuses, strict=True) if status == KeyStatus.DONE]
        late = KeyStatus.TIMED_OUT in statuses
        self._counts.blocks_loaded += len(good)
        self._counts.blocks_not_loaded += len(job.keys) - len(good)
        self._counts.loads_late += late
        self._finish(job_id, job, good, late)

    def _end_store(self, job_id: int, job: _Job, statuses: bytes) -> None:
        good = [
            key for key, status in zip(job.keys, statuses, strict=True) if status in (KeyStatus.DONE, KeyStatus.PRESENT)
        ]
        self._counts.blocks_stored += statuses.count(KeyStatus.DONE)
        self._counts.blocks_present += statuses.count(KeyStatus.PRESENT)
        if KeyStatus.MISSING in statuses and self._store_again(job, statuses, good):
            return
        del self._jobs[job_id]
        good = job.stored + good
        self._counts.blocks_not_stored += statuses.count(KeyStatus.MISSING) + sum(
            status > KeyStatus.MISSING for status in statuses
        )
        self._finish(job_id, job, good, KeyStatus.TIMED_OUT in statuses)

    def _store_again(self, job: _Job, statuses: bytes, good: list[OffloadKey]) -> bool:
        """The chain's beginning is gone from here, but vLLM's CPU tier may still have it: stored without it."""
        rest = [place for place, status in enumerate(statuses) if status == KeyStatus.MISSING]
        keys, rows = [job.keys[place] for place in rest], [job.rows[place] for place in rest]
        try:
            job.ticket = self._put(keys, rows, LOOSE)
        except Error:
            return False
        self._counts.blocks_not_stored += len(job.keys) - len(good) - len(rest)
        job.stored, job.keys, job.rows, job.before = good, keys, rows, 0
        return True

    def _finish(self, job_id: int, job: _Job, good: list[OffloadKey], late: bool) -> None:
        all_good = len(good) == len(job.keys) + len(job.stored)
        result = JobResult(
            job_id,
            all_good,
            successful_keys=tuple(good) if job.is_load and good and not all_good else None,
            transfer_time=time.monotonic() - job.started,
            transfer_bytes=len(good) * self._rows.bytes,
        )
        self._ended.append(Ended(result, job.request_id, job.keys, job.is_load, good, late))
