"""kvtier as a secondary tier of vLLM's own tiering, `TieringOffloadingSpec`: NVMe and remote stores below its CPU tier.

```text
 GPU ◄──► vLLM's CPU tier, /dev/shm ◄──► kvtier: a little host memory ◄──► NVMe, remote stores
          rows of all ranks              this module, in the scheduler process
```

vLLM looks up one key at a time, under a lock, in the scheduler's thread. What is on this machine is answered at once:
that takes 0.4 µs a key, where an answer from another thread takes a step of the engine. What only slow sources can tell
is asked for once per request and step (`tier_ahead`).
"""

import logging
import time
from collections.abc import Iterable
from typing import Any, ClassVar

from kvtier import Error, Presence, Unclean
from kvtier.complaints import Complaints
from kvtier.options import StoreOptions
from kvtier.vllm._compat import (
    LookupResult,
    Medium,
    OffloadingConnectorStats,
    OffloadingEvent,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from kvtier.vllm._tiering import BackpressureDetector, JobResult, Locality, SecondaryTierManager, TransferJob, keys_of
from kvtier.vllm.tier_ahead import Ahead
from kvtier.vllm.tier_jobs import LOOSE, Ended, Jobs, Place
from kvtier.vllm.tier_metrics import Counts, Stats, definitions
from kvtier.vllm.tier_rows import Rows, open_store

_log = logging.getLogger(__name__)

_HOST = "1GiB"
"""kvtier's own host memory if nothing is said: it only stages, as vLLM's CPU tier is the cache in memory."""
_SHUTDOWN = 10.0
"""Seconds that transfers under way have to end."""


class KvtierTier(SecondaryTierManager):
    """Keeps what vLLM's CPU tier had, on NVMe and in remote stores.

    The configuration of the tier has the names of `kvtier.options.StoreOptions`, and two more: `enable_kv_events`
    announces what is stored, and `clear_on_reset` forgets everything when vLLM resets its caches, as it does for
    weights that are replaced while it runs.
    """

    medium: ClassVar[Medium | None] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        *,
        enable_kv_events: bool = False,
        clear_on_reset: bool = False,
        locality: str | None = None,
        **given: object,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = None if locality is None else Locality(locality)
        options = StoreOptions.parse({"host": _HOST, **given})
        rows = Rows(primary_kv_view)
        self._store = open_store(options, given, offloading_spec.config, rows)
        self._counts = Counts()
        self._stats = Stats(self._store, self._counts)
        self._jobs = Jobs(self._store, rows, options.timeout, self._counts)
        slow = bool(options.remotes) or options.weigh_nvme
        self._ahead = Ahead(self._store, options.timeout) if slow else None
        # A drive that does not answer costs one request its deadline, not each: until then its blocks are not there.
        self._pause, self._paused_until = options.timeout, 0.0
        self._weigh_nvme = options.weigh_nvme
        self._clear_on_reset, self._stale = clear_on_reset, False
        self._prefix_groups = {
            group.group_id for group in offloading_spec.config.groups if group.sliding_window_size_in_chunks is None
        }
        self._failed: dict[str, set[OffloadKey]] = {}
        events = enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events
        self._events: list[OffloadingEvent] | None = [] if events else None
        self._finished: list[JobResult] = []
        self._complaints = Complaints(_log, "vLLM recomputes")

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """Whether a block can be loaded."""
        request_id = req_context.req_id
        if self._stale or key in self._failed.get(request_id, ()):
            return LookupResult.MISS
        try:
            presence = self._store.exists([key])[0]
        except Error as error:
            self._complaints.note("look-ups that failed", error)
            return LookupResult.MISS
        if presence == Presence.HOST:
            return LookupResult.HIT
        if presence == Presence.NVME:
            if time.monotonic() < self._paused_until:
                return LookupResult.MISS
            if not self._weigh_nvme:
                return LookupResult.HIT
        if self._ahead is None or get_offload_group_idx(key) not in self._prefix_groups:
            return LookupResult.MISS
        answer = self._ahead.answer(request_id, key)
        if answer is None:
            return LookupResult.RETRY
        # What was pinned is in host memory, and was found above.
        return LookupResult.MISS

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Starts a load: one ticket."""
        job = job_metadata
        self._jobs.load(job.job_id, job.req_context.req_id, list(job.keys), job.chunk_ids.tolist())

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Starts a store: one ticket. What is there already is not copied again."""
        job, keys = job_metadata, list(job_metadata.keys)
        place = self._place(job.req_context, keys)
        self._jobs.store(job.job_id, job.req_context.req_id, keys, job.chunk_ids.tolist(), place)

    def _place(self, context: ReqContext, keys: list[OffloadKey]) -> Place:
        """Whether the keys are a piece of one chain, and where it goes on from."""
        group = get_offload_group_idx(keys[0])
        if group not in self._prefix_groups:
            return LOOSE
        chain = [key for key in keys_of(context) if get_offload_group_idx(key) == group]
        try:
            first = chain.index(keys[0])
        except ValueError:
            return LOOSE
        if chain[first : first + len(keys)] != keys:
            return LOOSE
        return Place(chained=True, parent=chain[first - 1] if first else None)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """What is over since the last time."""
        self._collect()
        finished, self._finished = self._finished, []
        return finished

    def _collect(self) -> None:
        if self._ahead is not None:
            self._ahead.collect()
        for ended in self._jobs.collect():
            self._finished.append(ended.result)
            if ended.loaded:
                self._end_load(ended)
            elif self._events is not None and ended.good:
                self._events.append(OffloadingEvent(list(ended.good), Medium.STORAGE, False, locality=self.locality))

    def _end_load(self, ended: Ended) -> None:
        if ended.late:
            self._paused_until = time.monotonic() + self._pause
        if not ended.result.success:
            self._complaints.note(
                "loads that were not whole", f"{len(ended.keys) - len(ended.good)} blocks of the last one"
            )
            # vLLM asks again for what it did not get: not twice for the same request.
            if (failed := self._failed.get(ended.request_id)) is not None:
                failed.update(set(ended.keys).difference(ended.good))
        if self._ahead is not None:
            self._ahead.loaded(ended.request_id, ended.keys)

    def has_pending_work(self) -> bool:
        """Whether somebody waits for a step."""
        return bool(self._jobs) or (self._ahead is not None and len(self._ahead) > 0)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Blocks are stored as they come."""
        self._failed[req_context.req_id] = set()
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """Forgets the request. Its transfers go on: other requests may have the same beginning."""
        self._failed.pop(req_context.req_id, None)
        if self._ahead is not None:
            self._ahead.forget([req_context.req_id])

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """The step's look-ups are over."""
        if self._ahead is not None:
            self._ahead.forget(context.new_req_ids)
            self._ahead.submit()

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Blocks that were stored. What leaves is not announced: kvtier does not say so."""
        if not self._events:
            return ()
        events, self._events = self._events, []
        return events

    def drain_jobs(self) -> None:
        """Waits for all transfers: vLLM resets its CPU tier."""
        self._jobs.drain()
        self._collect()
        if self._clear_on_reset:
            try:
                self._store.clear()
                self._stale = False
            except Error as error:
                # KV of the old weights is still there: nothing is served until a reset has forgotten it.
                self._stale = True
                _log.error("kvtier could not forget what it has, and serves nothing until the next reset: %s", error)

    def get_stats(self) -> OffloadingConnectorStats | None:
        """What was done since the last time."""
        try:
            return self._stats.take()
        except Error:
            return None

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """The names in `get_stats`."""
        return definitions()

    def shutdown(self) -> None:
        """Ends the transfers and closes the store. Raises while vLLM's memory is in use: it must stay, then."""
        self._jobs.cancel()
        if not self._jobs.wait(_SHUTDOWN):
            raise Unclean("transfers of kvtier did not end: the CPU tier's memory is still in use")
        if self._ahead is not None:
            self._ahead.forget_all()
        try:
            self._store.close()
        except Unclean as error:
            _log.warning("kvtier was closed with work under way; its log reopens all the same: %s", error)


kvtier = KvtierTier
"""The `type` of the tier in a configuration that names this module: vLLM looks the class up by it."""
