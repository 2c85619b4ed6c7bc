"""One host pool of SGLang's and the store of its pages."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtier._kvtier import Store, Ticket
from kvtier.complaints import Complaints
from kvtier.errors import Error
from kvtier.sglang._compat import Tensor
from kvtier.sglang.hits import leading
from kvtier.sglang.meter import Meter
from kvtier.sglang.pages import Buffers, Pages
from kvtier.sglang.pins import Pins


@dataclass(frozen=True, slots=True)
class Slow:
    """Sources that are used if loading from them beats recomputing."""

    near: frozenset[int]
    """Places (`kvtier.Presence`) that are not among them."""
    shares: bool
    """Whether this rank writes to remote stores: one of those that hold the same."""


class PoolStore:
    """Loads and stores pages of one pool. Whatever fails is a miss, or a page that was not stored."""

    def __init__(
        self, name: str, store: Store, pages: Pages, slow: Slow | None, meter: Meter, complaints: Complaints
    ) -> None:
        self.name = name
        self.store = store
        self.pages = pages
        self.slow = slow
        self._pins = Pins()
        # A chain is stored at once, so it must fit.
        self._longest_chain = max(1, store.stats()["host_slots"] // 4)
        self._meter = meter
        self._complaints = complaints

    def prefix(self, keys: Sequence[str], seconds: float) -> int:
        """How many pages can be had before the first that cannot.

        Slow sources are asked for at most so long, and what they have is fetched; up to a quarter of host memory.
        """
        try:
            if self.slow is None:
                return self.store.prefix(keys)
            return self._fetched(keys, self.slow, seconds)
        except Error as error:
            self._complaints.note(f"looking up {self.name} failed", error)
            return 0

    def _fetched(self, keys: Sequence[str], slow: Slow, seconds: float) -> int:
        near = leading([place in slow.near for place in self.store.exists(keys)])
        self._pins.loaded(())
        if near == len(keys):
            return near
        ticket = self.store.pin(keys, chained=True, timeout=seconds)
        try:
            result = ticket.wait()
            pinned = 0 if result is None else result.prefix
        except BaseException:
            ticket.release()
            raise
        self._pins.hold(keys[:pinned], ticket)
        return max(near, pinned)

    def present(self, keys: Sequence[str]) -> list[bool]:
        """Which pages are there."""
        try:
            return [place != 0 for place in self.store.exists(keys)]
        except Error as error:
            self._complaints.note(f"looking up {self.name} failed", error)
            return [False] * len(keys)

    def load(self, keys: Sequence[str], slots: Tensor, seconds: float) -> list[bool]:
        """Loads pages into the pool, for at most so long; true for those that are in it now."""
        buffers, scatter = self.pages.of(slots)
        served = self.load_into(keys, buffers, seconds)
        scatter(leading(served))
        return served

    def load_into(self, keys: Sequence[str], buffers: Buffers, seconds: float) -> list[bool]:
        """The same, into any buffers."""
        served = self._run("loading", self.store.get, self._meter.loaded, keys, buffers, seconds)
        if self.slow is not None:
            self._pins.loaded(keys)
        return served

    def save(self, keys: Sequence[str], slots: Tensor, seconds: float) -> list[bool]:
        """Stores pages of the pool; true for those that are stored, which includes those that were."""
        if self.slow is None or not self.slow.shares:
            return self.save_from(keys, self.pages.of(slots)[0], seconds)
        served: list[bool] = []
        width = len(slots) // max(1, len(keys))
        for first in range(0, len(keys), self._longest_chain):
            chain = keys[first : first + self._longest_chain]
            buffers = self.pages.of(slots[first * width : (first + len(chain)) * width])[0]
            # Only what is stored as a chain goes to remote stores.
            put = functools.partial(self.store.put, chained=True)
            served += self._run("storing", put, self._meter.stored, chain, buffers, seconds)
        return served

    def save_from(self, keys: Sequence[str], buffers: Buffers, seconds: float) -> list[bool]:
        """The same, from any buffers."""
        return self._run("storing", self.store.put, self._meter.stored, keys, buffers, seconds)

    def clear(self) -> None:
        """Nothing that was stored before is served any more; raises `kvtier.Error` if it will be after a restart."""
        self._pins.release()
        self.store.clear()

    def close(self) -> None:
        """Closes the store; raises `kvtier.Error` if that did not go well."""
        self._pins.release()
        self.store.close()

    def _run(
        self,
        what: str,
        submit: Callable[..., Ticket],
        measured: Callable[[int, int, float], None],
        keys: Sequence[str],
        buffers: Buffers,
        seconds: float,
    ) -> list[bool]:
        start = time.perf_counter()
        try:
            # The buffers are SGLang's again when this returns, so it waits for the ticket and not for a time. The
            # ticket ends by itself, soon after its own.
            with submit(keys, buffers, timeout=seconds) as ticket:
                ticket.wait()
                served = ticket.served()
        except Error as error:
            self._complaints.note(f"{what} {self.name} failed", error)
            return [False] * len(keys)
        done = sum(served)
        if done:
            measured(done, done * self.pages.page_bytes, time.perf_counter() - start)
        return served
