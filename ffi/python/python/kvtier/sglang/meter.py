"""What the storage threads did, for SGLang's histograms, and what went wrong, in the log but not all of it."""

import logging
import threading
import time
from dataclasses import dataclass, field

from kvtier.sglang._compat import StorageMetrics

logger = logging.getLogger("kvtier.sglang")

_SILENCE = 30.0
"""Seconds between two warnings about the same thing."""
_MOST_SAMPLES = 4096
"""Samples that are kept for a scheduler that does not collect them."""


@dataclass(slots=True)
class Samples:
    """Of transfers in one direction: pages, and the bandwidth in GB/s (1e9 bytes)."""

    pages: list[int] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)

    def add(self, pages: int, nbytes: int, seconds: float) -> None:
        """One transfer."""
        if len(self.pages) < _MOST_SAMPLES:
            self.pages.append(pages)
            self.bandwidth.append(nbytes / max(seconds, 1e-9) / 1e9)


class Meter:
    """Collects samples from SGLang's reader and writer thread, until the scheduler takes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = Samples()
        self._stores = Samples()

    def loaded(self, pages: int, nbytes: int, seconds: float) -> None:
        """So many pages were loaded."""
        with self._lock:
            self._loads.add(pages, nbytes, seconds)

    def stored(self, pages: int, nbytes: int, seconds: float) -> None:
        """So many pages were stored."""
        with self._lock:
            self._stores.add(pages, nbytes, seconds)

    def take(self) -> StorageMetrics:
        """What came since the last call."""
        with self._lock:
            loads, self._loads = self._loads, Samples()
            stores, self._stores = self._stores, Samples()
        return StorageMetrics(
            prefetch_pgs=loads.pages,
            backup_pgs=stores.pages,
            prefetch_bandwidth=loads.bandwidth,
            backup_bandwidth=stores.bandwidth,
        )


class Complaints:
    """Failures, each kind of which is logged at once and then once in a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._next: dict[str, float] = {}

    def add(self, what: str, error: BaseException) -> None:
        """One failure."""
        now = time.monotonic()
        with self._lock:
            self._counts[what] = count = self._counts.get(what, 0) + 1
            if now < self._next.get(what, 0.0):
                return
            self._next[what] = now + _SILENCE
        logger.warning("kvtier: %s failed, %d times so far; SGLang recomputes: %s", what, count, error)

    @property
    def total(self) -> int:
        """How many there were."""
        with self._lock:
            return sum(self._counts.values())
