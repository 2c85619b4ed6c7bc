# ruff: noqa: ANN401 - what is SGLang's has no types here
"""Notices that a server's weights are replaced while it runs."""

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

_REPLACE = (
    "update_weights_from_disk",
    "update_weights_from_distributed",
    "update_weights_from_tensor",
    "update_weights_from_ipc",
    "begin_weight_update",
)
"""What `SchedulerWeightUpdaterManager` is called for. (An adapter is part of the keys of its requests.)"""

_watchers: "weakref.WeakSet[Any]" = weakref.WeakSet()


def watch(linker: Any) -> None:
    """Calls `linker.weights_change()` before weights are replaced, as long as the linker lives."""
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager as Updater

    _watchers.add(linker)
    for name in _REPLACE:
        method = getattr(Updater, name, None)
        if method is None:
            _log.warning("this SGLang has no %s: flush the cache and restart after an update of weights", name)
        elif not hasattr(method, "_kvtier"):
            setattr(Updater, name, _telling(method))


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def update(*args: Any, **kwargs: Any) -> Any:
        for linker in list(_watchers):
            linker.weights_change()
        return method(*args, **kwargs)

    update._kvtier = True  # type: ignore[attr-defined]
    return update
