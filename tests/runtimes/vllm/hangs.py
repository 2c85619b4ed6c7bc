"""Drives that do not answer, as kvtier's calls see them: a load takes all the time that it has, and brings nothing."""

import time
from typing import Any

from kvtier import KeyStatus
from kvtier.vllm.worker import KvtierWorker


class Late:
    """The ticket of such a load."""

    def __init__(self, keys: int, seconds: float) -> None:
        self._keys, self._until = keys, time.monotonic() + seconds

    @property
    def done(self) -> bool:
        return time.monotonic() >= self._until

    def wait(self) -> None:
        time.sleep(max(0.0, self._until - time.monotonic()))

    def statuses(self) -> bytes:
        return bytes([KeyStatus.TIMED_OUT]) * self._keys if self.done else bytes(self._keys)

    def cancel(self) -> None: ...

    def release(self) -> None: ...


class Hangs:
    """A store of the secondary tier."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, keys: list[bytes], _: object, *, timeout: float) -> Late:
        return Late(len(keys), timeout)


class HangingPool:
    """The pool of the connector's only tier, and the queue in which its worker hears of ends."""

    def __init__(self, worker: KvtierWorker) -> None:
        (self._tier,) = worker.rank.tiers
        self._worker, self._pool, self._queue = worker, self._tier.pool, worker._queue
        self._loads: list[tuple[Late, int]] = []
        self._tier.pool = worker._queue = self  # type: ignore[assignment]

    def heal(self) -> None:
        """The drive answers again."""
        assert not self._loads
        self._tier.pool, self._worker._queue = self._pool, self._queue

    def onboard(self, keys: list[bytes], _: object, *, timeout: float, queue: object, tag: int) -> Late:
        late = Late(len(keys), timeout)
        self._loads.append((late, tag))
        return late

    def offload(self, *given: Any, queue: object, **named: Any) -> Any:
        return self._pool.offload(*given, queue=self._queue, **named)

    def drain(self) -> list[tuple[int, int, int]]:
        # Asked once: another one may end at any time.
        done = [late.done for late, _ in self._loads]
        ended = [(tag, 0, 0) for (_, tag), over in zip(self._loads, done, strict=True) if over]
        self._loads = [load for load, over in zip(self._loads, done, strict=True) if not over]
        return [*self._queue.drain(), *ended]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
