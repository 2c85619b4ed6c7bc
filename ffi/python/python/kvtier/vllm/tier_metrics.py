"""What vLLM's Prometheus registry shows of the tier."""

import time
from dataclasses import asdict, dataclass

from kvtier import Store
from kvtier.vllm._compat import (
    OffloadingConnectorStats,
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
)
from kvtier.vllm.store_counters import STORE_COUNTERS

_EVERY = 1.0
"""Seconds between two looks at the store's counters, which take 20 µs; vLLM asks in every step."""

_TIER = {
    "blocks_loaded": "Blocks that kvtier brought to vLLM's CPU tier.",
    "blocks_stored": "Blocks that kvtier took.",
    "blocks_present": "Blocks that were to be stored and were there already.",
    "blocks_not_stored": "Blocks that kvtier did not take: no room, too much under way, late, or a failing drive.",
    "blocks_not_loaded": "Blocks that were found and could not be loaded; they were recomputed.",
    "loads_late": "Loads whose time was over.",
    "jobs_refused": "Jobs that were not begun as too much was under way.",
}
_GAUGES = {
    "host_slots": "Blocks that kvtier's host memory has room for.",
    "host_used": "Blocks in it.",
    "nvme_used": "Blocks on NVMe.",
    "under_way": "Operations that wait or run.",
}


def _name(short: str) -> str:
    return f"vllm:kvtier_tier_{short}"


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """For vLLM's registry."""
    texts = _TIER | STORE_COUNTERS
    counters = {_name(name): OffloadingCounterMetadata(documentation=text) for name, text in texts.items()}
    gauges = {_name(name): OffloadingGaugeMetadata(documentation=text) for name, text in _GAUGES.items()}
    return {**counters, **gauges}


@dataclass(slots=True)
class Counts:
    """What the tier did: the names are those of the metrics."""

    blocks_loaded: int = 0
    blocks_stored: int = 0
    blocks_present: int = 0
    blocks_not_stored: int = 0
    blocks_not_loaded: int = 0
    loads_late: int = 0
    jobs_refused: int = 0


class Stats:
    """Collects what was done since the last time."""

    def __init__(self, store: Store, counts: Counts) -> None:
        self._store, self._counts = store, counts
        self._seen: dict[str, int] = {}
        self._next = 0.0

    def take(self) -> OffloadingConnectorStats | None:
        """At most once a second."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + _EVERY
        now = asdict(self._counts) | self._store.stats()
        stats = OffloadingConnectorStats()
        for short in _TIER | STORE_COUNTERS:
            if more := now[short] - self._seen.get(short, 0):
                stats.increase_counter(_name(short), more)
        for short in _GAUGES:
            stats.set_gauge(_name(short), now[short])
        self._seen = now
        return stats
