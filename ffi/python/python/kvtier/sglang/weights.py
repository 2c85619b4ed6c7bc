"""Notices that the weights of a running server are replaced.

Then all that was stored before belongs to other weights, and what is stored from now on must not be found by a server
that starts with the first ones. SGLang tells its storage nothing of it, so the methods that do it are wrapped.
"""

import functools
import weakref
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from kvtier.sglang._compat import WEIGHT_UPDATES, WeightUpdater

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Listener(Protocol):
    """Who wants to know."""

    def weights_changed(self) -> None:
        """Some of the weights may be new."""


_listeners: "weakref.WeakSet[Listener]" = weakref.WeakSet()
_wrapped = False


def listen(listener: Listener) -> None:
    """Calls `listener.weights_changed()` after every update of this process's weights, for as long as it lives."""
    global _wrapped
    _listeners.add(listener)
    if not _wrapped:
        _wrapped = True
        for name in WEIGHT_UPDATES:
            setattr(WeightUpdater, name, _telling(getattr(WeightUpdater, name)))


def _telling(update: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(update)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return update(*args, **kwargs)
        finally:
            # Also if it failed: it may have come half-way.
            for listener in list(_listeners):
                listener.weights_changed()

    return told
