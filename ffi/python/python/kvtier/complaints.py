"""What goes wrong is counted, and said once in a while: a log that repeats itself is not read."""

import logging
import threading
import time
from collections import Counter

# Seconds between two messages about the same thing.
_PAUSE = 30.0


class Complaints:
    """How often what went wrong. For several threads."""

    def __init__(self, log: logging.Logger, outcome: str) -> None:
        """`outcome`: what becomes of the requests, which every message ends with."""
        self._log = log
        self._outcome = outcome
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said: dict[str, float] = {}

    def note(self, what: str, why: object = "", times: int = 1) -> None:
        """Counts it, and logs it unless that has just been done."""
        now = time.monotonic()
        with self._lock:
            self._counts[what] += times
            count = self._counts[what]
            if now - self._said.get(what, -_PAUSE) < _PAUSE:
                return
            self._said[what] = now
        because = f": {why}" if why != "" else ""
        self._log.warning("kvtier: %s, %d so far%s (%s)", what, count, because, self._outcome)

    def counts(self) -> dict[str, int]:
        """All of them."""
        with self._lock:
            return dict(self._counts)
