"""What the storage threads did, for SGLang's histograms."""

import threading
from dataclasses import dataclass, field

from kvtier.sglang._compat import StorageMetrics

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
