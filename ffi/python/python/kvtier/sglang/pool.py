"""One host pool of SGLang's and the store of its pages."""

import time
from collections.abc import Callable, Sequence

from kvtier._kvtier import Store, Ticket
from kvtier.errors import Error
from kvtier.sglang._compat import Tensor
from kvtier.sglang.hits import leading
from kvtier.sglang.meter import Complaints, Meter
from kvtier.sglang.pages import Buffers, Pages


class PoolStore:
    """Loads and stores pages of one pool. Whatever fails is a miss, or a page that was not stored."""

    def __init__(self, name: str, store: Store, pages: Pages, meter: Meter, complaints: Complaints) -> None:
        self.name = name
        self.store = store
        self.pages = pages
        self._meter = meter
        self._complaints = complaints

    def prefix(self, keys: Sequence[str]) -> int:
        """How many pages are there before the first that is not."""
        try:
            return self.store.prefix(keys)
        except Error as error:
            self._complaints.add(f"looking up {self.name}", error)
            return 0

    def present(self, keys: Sequence[str]) -> list[bool]:
        """Which pages are there."""
        try:
            return [place != 0 for place in self.store.exists(keys)]
        except Error as error:
            self._complaints.add(f"looking up {self.name}", error)
            return [False] * len(keys)

    def load(self, keys: Sequence[str], slots: Tensor, seconds: float) -> list[bool]:
        """Loads pages into the pool, for at most so long; true for those that are in it now."""
        buffers, scatter = self.pages.of(slots)
        served = self.load_into(keys, buffers, seconds)
        scatter(leading(served))
        return served

    def load_into(self, keys: Sequence[str], buffers: Buffers, seconds: float) -> list[bool]:
        """The same, into any buffers."""
        return self._run("loading", self.store.get, self._meter.loaded, keys, buffers, seconds)

    def save(self, keys: Sequence[str], slots: Tensor, seconds: float) -> list[bool]:
        """Stores pages of the pool; true for those that are stored, which includes those that were."""
        return self.save_from(keys, self.pages.of(slots)[0], seconds)

    def save_from(self, keys: Sequence[str], buffers: Buffers, seconds: float) -> list[bool]:
        """The same, from any buffers."""
        return self._run("storing", self.store.put, self._meter.stored, keys, buffers, seconds)

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
            self._complaints.add(f"{what} {self.name}", error)
            return [False] * len(keys)
        done = sum(served)
        if done:
            measured(done, done * self.pages.page_bytes, time.perf_counter() - start)
        return served
