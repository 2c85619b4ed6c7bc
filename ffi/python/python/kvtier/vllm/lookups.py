"""What the scheduler has asked about its requests, and what it was answered.

```text
 wanted ──take()──► asked ──answered()──► known, until the request is loaded, over, or the answer is old
```
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtier.vllm._compat import LookupResult, OffloadKey
from kvtier.vllm.messages import Ask, add_answer

_FRESH = 1.0
"""Seconds for which an answer about blocks that nobody holds is believed. One that was too good costs a failed load."""

_MOST_AHEAD = 64
"""Requests that are asked about with another one, before their turn."""

_MOST_HELD_AHEAD = 4
"""If what is found is held for them."""


@dataclass(slots=True)
class _Look:
    ask: Ask
    first: int
    """Tokens before the first key."""
    place_of: dict[OffloadKey, int]
    asked_at: float
    so_far: tuple[int, bytes] | None = None
    found: bytes | None = None


@dataclass
class Lookups:
    """See the module's head."""

    ranks: int
    """How many have to answer."""
    holds: bool
    """Whether the ranks hold what they found until it is released."""
    patience: float
    """Seconds after which an ask without an answer is a miss."""
    asked: int = 0
    found: int = 0
    """Keys since they were last reported."""
    _looks: dict[str, _Look] = field(default_factory=dict)
    _by_id: dict[int, str] = field(default_factory=dict)
    _wanted: dict[str, list[list[OffloadKey]]] = field(default_factory=dict)
    """Requests that have just come, whose turn will come soon."""
    _next: int = 0

    def want(self, request: str, chains: Sequence[Sequence[OffloadKey]]) -> None:
        """A request has come: its keys go with the next ask."""
        if any(chains):
            self._wanted[request] = [list(chain) for chain in chains]

    def need(self, request: str, first: int, chains: Sequence[Sequence[OffloadKey]]) -> list[Ask]:
        """A request has its turn. Returns what has to be asked for that, if anything."""
        now = time.monotonic()
        look = self._looks.get(request)
        if look is not None and self._serves(look, first, chains, now):
            return []
        self._wanted.pop(request, None)
        asks = [self._begin(request, first, [list(chain) for chain in chains], now)]
        ahead = _MOST_HELD_AHEAD if self.holds else _MOST_AHEAD
        for other in list(self._wanted)[:ahead]:
            asks.append(self._begin(other, 0, self._wanted.pop(other), now))
        return [ask for ask in asks if any(ask.chains)]

    def answered(self, id_: int, ranks: int, found: bytes) -> None:
        """Some ranks have answered an ask."""
        look = self._looks.get(self._by_id.get(id_, ""))
        if look is None or look.ask.id != id_:
            return
        look.so_far = add_answer(look.so_far, ranks, found)
        if look.so_far[0] >= self.ranks:
            look.found = look.so_far[1]
            self.asked += len(look.found)
            self.found += len(look.found) - look.found.count(0)

    def result(self, request: str, key: OffloadKey) -> LookupResult:
        """What is known of a key."""
        look = self._looks.get(request)
        place = None if look is None else look.place_of.get(key)
        if look is None or place is None:
            return LookupResult.MISS
        if look.found is None:
            late = time.monotonic() - look.asked_at > self.patience
            return LookupResult.MISS if late else LookupResult.RETRY
        return LookupResult.HIT if look.found[place] else LookupResult.MISS

    def place(self, request: str, key: OffloadKey) -> int:
        """In which tier a key was found."""
        look = self._looks.get(request)
        at = None if look is None else look.place_of.get(key)
        return 0 if look is None or look.found is None or at is None else look.found[at]

    def forget(self, request: str) -> bool:
        """A request is loaded or over. True if something may be held for it."""
        self._wanted.pop(request, None)
        look = self._looks.pop(request, None)
        if look is None:
            return False
        self._by_id.pop(look.ask.id, None)
        return self.holds

    def clear(self) -> None:
        """Nothing that was answered holds any more."""
        self._looks.clear()
        self._by_id.clear()
        self._wanted.clear()

    def _begin(self, request: str, first: int, chains: list[list[OffloadKey]], now: float) -> Ask:
        self.forget(request)
        self._next += 1
        ask = Ask(self._next, request, chains)
        keys = [key for chain in chains for key in chain]
        look = _Look(ask, first, {key: at for at, key in enumerate(keys)}, now)
        if not keys:
            look.found = b""
        self._looks[request] = look
        self._by_id[ask.id] = request
        return ask

    def _serves(self, look: _Look, first: int, chains: Sequence[Sequence[OffloadKey]], now: float) -> bool:
        if first < look.first or any(chain and chain[-1] not in look.place_of for chain in chains):
            return False
        return look.found is None or self.holds or now - look.asked_at < _FRESH
