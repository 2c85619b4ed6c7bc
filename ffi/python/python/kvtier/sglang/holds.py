"""What a lookup has promised to a request: pages that stay in host memory until they were loaded.

SGLang aborts a request whose load fails. So a lookup promises only pages that it has pinned, that is, pages that
were read and verified. What can still fail is the copy from host memory to the device.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvtier._enums import KeyStatus, Presence
from kvtier._kvtier import Ticket
from kvtier.sglang.part import Part

UNUSED_SECONDS = 60.0
"""After so long without a lookup a request is taken to be gone: SGLang does not tell of those that leave the queue
between a lookup and a load."""

MISS_SECONDS = 1.0
"""For so long a lookup that found nothing is not repeated: SGLang repeats it in every round that a request waits."""

MOST_HOLDS = 256
_MOST_MISSES = 1024

_WINDOWS = 8
"""Ends of a prefix that are tried, longest first, where a pool keeps only windows. The ranks agree on one of them."""

_BREAK_SECONDS = (5.0, 600.0)
"""After a lookup that was not answered in time, slow tiers are left alone for the first, doubling up to the second."""


@dataclass(frozen=True, slots=True)
class Need:
    """Pages that a prefix needs of one part."""

    part: Part
    window: int | None
    """Pages before the end of the prefix, or all of them."""


@dataclass(slots=True)
class Hold:
    """Pages that are pinned for one request."""

    question: object
    touched: float
    lengths: list[int] = field(default_factory=list)
    """Prefixes, in pages, that can be loaded."""
    pinned: dict[str, set[str]] = field(default_factory=dict)
    """By part."""
    tickets: list[tuple[Part, int, Ticket]] = field(default_factory=list)

    def covers(self, part: Part, keys: Iterable[str]) -> bool:
        """Whether all of these pages are pinned."""
        return self.pinned.get(part.name, set()).issuperset(keys)

    def release(self) -> None:
        """Lets go of all pages."""
        for part, blocks, ticket in self.tickets:
            ticket.cancel()
            ticket.release()
            part.pinned -= blocks
        self.tickets.clear()
        self.pinned.clear()


class Holds:
    """The holds of all requests, by their ids."""

    def __init__(self, timeout: float, *, several_ranks: bool, now: Callable[[], float] = time.monotonic) -> None:
        self._holds: OrderedDict[str, Hold] = OrderedDict()
        self._misses: dict[str, tuple[object, float]] = {}
        self._timeout = timeout
        self._several_ranks = several_ranks
        self._now = now
        self._slow_again = float("-inf")
        self._pause = _BREAK_SECONDS[0]
        self.timeouts = 0
        """Lookups that were not answered in time."""
        self.expired = 0
        """Holds that were never used."""

    def __len__(self) -> int:
        return len(self._holds)

    def lookup(self, rid: str, keys: Sequence[str], needs: Sequence[Need]) -> list[int]:
        """Prefixes of `keys`, in pages, that this request can load: every need of theirs is pinned from now on.

        Raises `kvtier.Error` when the store cannot be asked.
        """
        # The keys are a chain of hashes: the last one and their number say them all.
        question = (len(keys), keys[-1], tuple((need.part.name, need.window) for need in needs))
        now = self._now()
        self.expire()
        missed = self._misses.pop(rid, None)
        if missed is not None and missed[0] == question and now < missed[1]:
            self._misses[rid] = missed
            return []
        held = self._holds.get(rid)
        if held is not None and held.question == question:
            held.touched = now
            self._holds.move_to_end(rid)
            return held.lengths
        self.release(rid)
        hold = Hold(question, now)
        try:
            if len(self._holds) < MOST_HOLDS:
                hold.lengths = self._pin(hold, keys, needs)
        finally:
            if not hold.lengths:
                hold.release()
        if hold.lengths:
            self._holds[rid] = hold
        else:
            if len(self._misses) >= _MOST_MISSES:
                self._misses.clear()
            self._misses[rid] = question, self._now() + MISS_SECONDS
        return hold.lengths

    def take(self, rid: str) -> Hold | None:
        """The hold of a request that loads now. It is the caller's to release."""
        return self._holds.pop(rid, None)

    def release(self, rid: str) -> None:
        """Lets go of what a request holds, if anything."""
        hold = self._holds.pop(rid, None)
        if hold is not None:
            hold.release()

    def clear(self) -> None:
        """Releases everything."""
        for hold in self._holds.values():
            hold.release()
        self._holds.clear()
        self._misses.clear()

    def expire(self) -> None:
        """Releases what nobody has asked about for long."""
        while self._holds:
            rid, oldest = next(iter(self._holds.items()))
            if self._now() - oldest.touched < UNUSED_SECONDS:
                return
            self.expired += 1
            self.release(rid)

    def _pin(self, hold: Hold, keys: Sequence[str], needs: Sequence[Need]) -> list[int]:
        end = time.monotonic() + self._timeout
        whole = [need.part for need in needs if need.window is None]
        windows = [(need.part, need.window) for need in needs if need.window is not None]
        length = min((self._there(part, keys) for part in whole), default=len(keys))
        ends = [n for n in self._ends(keys[:length], windows) if n <= length]
        if not ends:
            return []
        # From the longest prefix on nothing is needed but parts of it.
        length = min((self._bring(hold, part, keys[: ends[-1]], end) for part in whole), default=ends[-1])
        ends = [n for n in ends if n <= length]
        if not windows:
            return ends
        good: list[int] = []
        for n in reversed(ends[-_WINDOWS:]):
            wanted = [(part, keys[max(0, n - window) : n]) for part, window in windows]
            if all(self._bring(hold, part, some, end) == len(some) for part, some in wanted):
                good.insert(0, n)
                if not self._several_ranks:
                    break
        return good

    def _ends(self, keys: Sequence[str], windows: Sequence[tuple[Part, int]]) -> list[int]:
        """Lengths at which all windows seem to be there."""
        ends = list(range(1, len(keys) + 1))
        for part, window in windows:
            there = self._each(part, keys)
            ends = [n for n in ends if all(there[max(0, n - window) : n])]
        return ends

    def _bring(self, hold: Hold, part: Part, keys: Sequence[str], end: float) -> int:
        """Pins those that are not pinned yet, and says how many from the first on are."""
        pinned = hold.pinned.setdefault(part.name, set())
        wanted = [key for key in keys if key not in pinned][: part.room]
        patience = end - time.monotonic()
        if wanted and patience > 0:
            chained = part.slow and not self._only_host
            ticket = part.store.pin(part.keys(wanted), chained=chained, timeout=patience)
            part.pinned += len(wanted)
            hold.tickets.append((part, len(wanted), ticket))
            if ticket.wait(patience) is None or KeyStatus.TIMED_OUT in ticket.statuses():
                self._was_late()
            elif not self._only_host:
                self._pause = _BREAK_SECONDS[0]
            pinned.update(key for key, served in zip(wanted, ticket.served(), strict=True) if served)
        return next((index for index, key in enumerate(keys) if key not in pinned), len(keys))

    @property
    def _only_host(self) -> bool:
        """Whether the slower tiers are left alone for now."""
        return self._now() < self._slow_again

    def _was_late(self) -> None:
        self.timeouts += 1
        self._slow_again = self._now() + self._pause
        self._pause = min(2 * self._pause, _BREAK_SECONDS[1])

    def _there(self, part: Part, keys: Sequence[str]) -> int:
        if part.slow and not self._only_host:
            # Only the pin knows what remote stores have, and whether it is worth to load it.
            return min(len(keys), part.room)
        there = self._each(part, keys[: part.room])
        return there.index(False) if False in there else len(there)

    def _each(self, part: Part, keys: Sequence[str]) -> list[bool]:
        only_host = self._only_host
        found = part.store.exists(part.keys(keys))
        return [place == Presence.HOST if only_host else place != Presence.ABSENT for place in found]
