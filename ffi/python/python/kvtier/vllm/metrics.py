"""What vLLM's Prometheus registry shows of kvtier."""

import time

from kvtier.vllm._compat import (
    OffloadingConnectorStats,
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)
from kvtier.vllm.rank import Rank
from kvtier.vllm.store_counters import STORE_COUNTERS
from kvtier.vllm.worker import Counts, KvtierWorker

_EVERY = 1.0
"""Seconds between two looks at the counters of the stores."""

_WORKER = {
    "blocks_loaded": "Blocks copied from kvtier into the KV cache.",
    "blocks_stored": "Blocks copied from the KV cache into kvtier.",
    "blocks_not_stored": "Blocks that kvtier did not take: no room, too much under way, or computed before a reset.",
    "loads_failed": "Loads that did not bring every block; their requests were recomputed.",
    "loads_late": "Those of them whose time was over.",
}
_STORE_GAUGES = {
    "host_slots": "Blocks that host memory has room for.",
    "host_used": "Blocks in host memory.",
    "nvme_used": "Blocks on NVMe.",
    "under_way": "Operations that wait or run.",
}
_MANAGER = {
    "blocks_asked": "Blocks that were looked up.",
    "blocks_found": "Those of them that were found.",
}


def name(short: str) -> str:
    """As Prometheus has it."""
    return f"vllm:kvtier_{short}"


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """For vLLM's registry. Sizes are of each rank."""
    counters = _WORKER | STORE_COUNTERS | _MANAGER
    all_metrics: dict[str, OffloadingMetricMetadata] = {
        name(short): OffloadingCounterMetadata(documentation=text) for short, text in counters.items()
    }
    for short, text in _STORE_GAUGES.items():
        all_metrics[name(short)] = OffloadingGaugeMetadata(documentation=text, labelnames=("rank",))
    return all_metrics


class WorkerStats:
    """Collects what one rank has done since the last time."""

    def __init__(self, worker: KvtierWorker, number: int) -> None:
        self._worker = worker
        self._rank = str(number)
        self._seen: dict[str, int] = {}
        self._next = 0.0

    def take(self) -> OffloadingConnectorStats | None:
        """At most once a second."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + _EVERY
        stats = OffloadingConnectorStats()
        counts, self._worker.counts = self._worker.counts, Counts()
        for short in _WORKER:
            if value := getattr(counts, short):
                stats.increase_counter(name(short), value)
        totals = _totals(self._worker.rank)
        for short in STORE_COUNTERS:
            if more := totals.get(short, 0) - self._seen.get(short, 0):
                stats.increase_counter(name(short), more)
        for short in _STORE_GAUGES:
            stats.set_gauge(name(short), totals.get(short, 0), (self._rank,))
        self._seen = totals
        return stats


def _totals(rank: Rank) -> dict[str, int]:
    totals: dict[str, int] = {}
    for tier in rank.tiers:
        with rank.surviving("stats"):
            for short, value in tier.store.stats().items():
                totals[short] = totals.get(short, 0) + value
    return totals
