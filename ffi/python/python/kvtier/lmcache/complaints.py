"""What goes wrong is counted, and said once in a while: a log that repeats itself is not read."""

import logging
import threading
import time
from collections import Counter

_log = logging.getLogger("kvtier.lmcache")

# Seconds between two messages about the same thing.
_PAUSE = 60.0


class Complaints:
    """How often what went wrong. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._said: dict[str, float] = {}

    def note(self, what: str, why: object = "", times: int = 1) -> None:
        """Counts it, and logs it unless that has just been done."""
        now = time.monotonic()
        with self._lock:
            self._counts[what] += times
            count = self._counts[what]
            quiet = now - self._said.get(what, -_PAUSE) < _PAUSE
            if not quiet:
                self._said[what] = now
        if not quiet:
            _log.warning("%s (%d so far)%s", what, count, f": {why}" if why != "" else "")

    def counts(self) -> dict[str, int]:
        """All of them."""
        with self._lock:
            return dict(self._counts)
