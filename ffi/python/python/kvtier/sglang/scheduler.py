"""What SGLang's scheduler does and tells its storage nothing of: its methods are wrapped, once in a process.

- The weights of a running server are replaced. All that was stored before belongs to other weights, and what is stored
  from now on must not be found by a server that starts with the first ones.
- A pass of prefill took its time, which is what the choice between loading and recomputing learns from.
"""

import functools
import logging
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ParamSpec, Protocol, TypeVar

from kvtier.sglang._compat import RadixCache, ScheduleBatch, Scheduler, WeightUpdater

logger = logging.getLogger("kvtier.sglang")

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Listener(Protocol):
    """Who wants to know."""

    def weights_changed(self) -> None:
        """Some of the weights may be new."""

    def prefilled(self, start: int, end: int, seconds: float) -> None:
        """A prompt's tokens `start..end` were computed."""


_listeners: "weakref.WeakSet[Listener]" = weakref.WeakSet()
_wrapped = False
_epoch = ""
_flushes = 0
_unflushed = False
"""Whether SGLang's own cache still has pages of the weights before, which it may store as if they were new."""
_last_end = 0.0
"""When the pass before was over, in the clock of `launch_ts`: passes overlap on the host, and not on the GPU."""


def listen(listener: Listener) -> None:
    """Tells a listener from now on, for as long as it lives."""
    watch()
    _listeners.add(listener)


def epoch() -> str:
    """Empty while this process has the weights that it started with; a new text after every update of them.

    And another after the flush that follows, if SGLang did not flush its own cache with the update.
    """
    return _epoch


def watch() -> None:
    """Notices from now on what happens in this process. It is called when a scheduler starts, see `plugin`."""
    global _wrapped
    if not _wrapped:
        _wrapped = True
        RadixCache.reset = _telling_of_flushes(RadixCache.reset)
        # What every update calls itself: SGLang keeps the updates as bound methods, which it is too late to wrap.
        WeightUpdater._observe_weight_load = _telling_of_weights(WeightUpdater._observe_weight_load)
        Scheduler.process_batch_result = _telling_of_prefill(Scheduler.process_batch_result)


_Observed = Callable[_P, AbstractContextManager[None]]


def _telling_of_weights(observe: _Observed[_P]) -> _Observed[_P]:
    @functools.wraps(observe)
    @contextmanager
    def told(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[None]:
        global _unflushed
        flushes = _flushes
        try:
            with observe(*args, **kwargs):
                yield
        finally:
            # Also if the update failed: it may have come half-way.
            _unflushed = flushes == _flushes
            _begin_epoch()

    return told


def _telling_of_flushes(reset: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(reset)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        global _flushes, _unflushed
        done = reset(*args, **kwargs)
        _flushes += 1
        if _unflushed:
            _unflushed = False
            _begin_epoch()
        return done

    return told


def _begin_epoch() -> None:
    global _epoch
    _epoch = uuid.uuid4().hex
    for listener in list(_listeners):
        listener.weights_changed()


def _telling_of_prefill(process: Callable[..., _R]) -> Callable[..., _R]:
    @functools.wraps(process)
    def told(scheduler: Scheduler, batch: ScheduleBatch, *args: object, **kwargs: object) -> _R:
        # It waits for the GPU.
        processed = process(scheduler, batch, *args, **kwargs)
        try:
            _tell_of_prefill(batch)
        except Exception:
            # The scheduler goes on without what could have been learnt.
            logger.debug("kvtier: a pass of prefill was not understood", exc_info=True)
        return processed

    return told


def _tell_of_prefill(batch: ScheduleBatch) -> None:
    global _last_end
    start, _last_end = _last_end, time.monotonic()
    if batch.launch_ts is None or not batch.forward_mode.is_extend():
        return
    seconds = _last_end - max(start, batch.launch_ts)
    tokens = sum(batch.extend_lens)
    for before, new in zip(batch.prefix_lens, batch.extend_lens, strict=True):
        for listener in list(_listeners):
            # Requests of one pass share its time by their tokens.
            listener.prefilled(before, before + new, seconds * new / tokens)
