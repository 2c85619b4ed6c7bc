"""Time, processors, and what other threads of Python notice."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

UNIT = 1000
"""Turns of the loop that a busy thread counts as one piece of work: about 10 us."""


def processor_seconds() -> float:
    """User and system, of all threads of the process; the kernel's workers for io_uring are among them."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass
class Cost:
    """What something took."""

    seconds: float
    processor: float

    @staticmethod
    def of(work: Callable[[], object]) -> Cost:
        """Does it."""
        wall, processor = time.perf_counter(), processor_seconds()
        work()
        return Cost(time.perf_counter() - wall, processor_seconds() - processor)


@dataclass
class Pauses:
    """How long pieces of work of about 10 us took a busy thread: what `work` did not let it have shows as long ones."""

    pieces_per_s: float
    p99_ms: float
    max_ms: float

    @staticmethod
    def during(work: Callable[[], object]) -> Pauses:
        """Does the work while the thread counts."""
        pieces: list[float] = []
        stop = False

        def count() -> None:
            last = time.perf_counter()
            while not stop:
                for _ in range(UNIT):
                    pass
                now = time.perf_counter()
                pieces.append(now - last)
                last = now

        thread = threading.Thread(target=count)
        begin = time.perf_counter()
        thread.start()
        try:
            work()
        finally:
            stop = True
            thread.join()
        took = time.perf_counter() - begin
        p99 = statistics.quantiles(pieces, n=100)[98] if len(pieces) > 100 else max(pieces)
        return Pauses(len(pieces) / took, p99 * 1e3, max(pieces) * 1e3)
