"""Which objects somebody has looked up and will load.

A locked object is not deleted, and if it is in host memory it stays there: it is pinned. One that is on NVMe alone is
not brought to memory for a lock: LMCache looks up all chunks of a prompt, those that it has in its own memory too, so
most of what would be read would not be asked for. Nor is one pinned that kvtier's limit (a quarter of host memory) has
no room for. In both cases the load reads it from NVMe, or, if it is gone by then, says that it is a miss.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from kvtier.lmcache._compat import ObjectKey

# Seconds. A request that LMCache gave up is never unlocked; it must not keep memory for ever.
LONGEST_LOCK = 300.0


class Pin(Protocol):
    """A `kvtier.Ticket` of blocks that stay in memory until it is released."""

    def release(self) -> None:
        """Lets them go."""


@dataclass(eq=False, slots=True)
class Lock:
    """What one look-up has locked."""

    keys: set[ObjectKey]
    until: float
    pins: list[Pin]

    def end(self) -> None:
        """Lets the blocks go."""
        for pin in self.pins:
            pin.release()
        self.pins.clear()


class Locks:
    """All of them. Not for several threads at once."""

    def __init__(self) -> None:
        self._all: deque[Lock] = deque()
        self._of: dict[ObjectKey, list[Lock]] = {}

    def __len__(self) -> int:
        """Objects that are locked."""
        return len(self._of)

    @property
    def pins(self) -> int:
        """Tickets that hold pins."""
        return sum(len(lock.pins) for lock in self._all)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._of

    def lock(self, keys: set[ObjectKey], pins: list[Pin]) -> None:
        """Locks objects once more each. Ends locks that are too old."""
        now = time.monotonic()
        while self._all and (not self._all[0].keys or self._all[0].until < now):
            old = self._all.popleft()
            for key in old.keys:
                self._forget(key, old)
            old.end()
        lock = Lock(keys, now + LONGEST_LOCK, pins)
        self._all.append(lock)
        for key in keys:
            self._of.setdefault(key, []).append(lock)

    def unlock(self, key: ObjectKey) -> None:
        """Takes back one lock of an object, the oldest. Nothing happens if it has none."""
        locks = self._of.get(key)
        if locks is None:
            return
        lock = locks[0]
        self._forget(key, lock)
        lock.keys.discard(key)
        if not lock.keys:
            lock.end()
            # It is mostly the oldest; another one is dropped from the queue when it comes to its head.
            if self._all and self._all[0] is lock:
                self._all.popleft()

    def clear(self) -> None:
        """Ends all of them."""
        for lock in self._all:
            lock.end()
        self._all.clear()
        self._of.clear()

    def _forget(self, key: ObjectKey, lock: Lock) -> None:
        locks = self._of[key]
        locks.remove(lock)
        if not locks:
            del self._of[key]
