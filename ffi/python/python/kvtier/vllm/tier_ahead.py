"""Look-ups that ask slow sources: remote stores, and NVMe where loading from it is weighed against recomputing.

The keys of a request that vLLM asks about in one step are one chain. It is pinned at the end of the step: what the rule
lets in comes to kvtier's host memory and stays there until vLLM has loaded it. Until then the answer is "ask again".
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from kvtier import Error, KeyStatus, Store, Ticket
from kvtier.vllm._compat import OffloadKey


@dataclass(slots=True)
class _Request:
    asked: dict[OffloadKey, None] = field(default_factory=dict)
    """In this step, in the order of the chain."""
    under_way: dict[OffloadKey, None] = field(default_factory=dict)
    answers: dict[OffloadKey, bool] = field(default_factory=dict)
    pins: list[Ticket] = field(default_factory=list)
    waits_for: Ticket | None = None


class Ahead:
    """The pins of all requests."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        self._requests: dict[str, _Request] = {}

    def __len__(self) -> int:
        """Requests that wait for an answer."""
        return sum(bool(request.asked or request.waits_for) for request in self._requests.values())

    def answer(self, request_id: str, key: OffloadKey) -> bool | None:
        """Whether the key is in host memory now; None while it is not known."""
        request = self._requests.setdefault(request_id, _Request())
        answer = request.answers.get(key)
        if answer is None and key not in request.under_way:
            request.asked[key] = None
        return answer

    def submit(self) -> None:
        """Pins the chains of this step."""
        for request in self._requests.values():
            if not request.asked or request.waits_for is not None:
                continue
            keys, request.asked = request.asked, {}
            try:
                ticket = self._store.pin(list(keys), chained=True, timeout=self._seconds)
            except Error:
                request.answers.update(dict.fromkeys(keys, False))
                continue
            request.under_way, request.waits_for = keys, ticket
            request.pins.append(ticket)

    def collect(self) -> None:
        """Takes the answers of pins that are through."""
        for request in self._requests.values():
            if request.waits_for is None or not request.waits_for.done:
                continue
            statuses = request.waits_for.statuses()
            some = KeyStatus.DONE in statuses
            for key, status in zip(request.under_way, statuses, strict=True):
                # Pins have a quarter of the memory: what had no room is asked for again when the first part was loaded.
                if not (some and status == KeyStatus.NO_ROOM):
                    request.answers[key] = status == KeyStatus.DONE
            request.under_way, request.waits_for = {}, None

    def loaded(self, request_id: str, keys: Collection[OffloadKey]) -> None:
        """VLLM has these keys, or gave them up: the pins behind them are not needed any more."""
        request = self._requests.get(request_id)
        if request is None:
            return
        for key in keys:
            request.answers.pop(key, None)
        if request.waits_for is None and True not in request.answers.values():
            self._release(request)

    def forget(self, request_ids: Iterable[str]) -> None:
        """These requests ask nothing more: they run, or are over."""
        for request_id in request_ids:
            if (request := self._requests.pop(request_id, None)) is not None:
                self._release(request)

    def forget_all(self) -> None:
        """Nobody asks any more."""
        self.forget(list(self._requests))

    def _release(self, request: _Request) -> None:
        for ticket in request.pins:
            ticket.cancel()
            ticket.release()
        request.pins.clear()
