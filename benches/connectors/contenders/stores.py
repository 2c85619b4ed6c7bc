"""The stores that kvtier's connectors open: how a benchmark makes them durable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kvtier
from kvtier.options import StoreOptions

TIMEOUT = 120.0

_opened: list[kvtier.Store] = []
_open = StoreOptions.open


def _noted(self: StoreOptions, *arguments: Any, **more: Any) -> kvtier.Store:
    store = _open(self, *arguments, **more)
    _opened.append(store)
    return store


StoreOptions.open = _noted  # type: ignore[method-assign]


def options(directory: Path, size: int, blocks: int) -> dict[str, object]:
    """What a user writes in the runtime's configuration: the same sizes as `contenders.wheel`."""
    total = size * blocks
    return {
        "path": str(directory / "kvtier"),
        "host": 2 * total + 64 * size,
        "nvme": 3 * total + (1 << 30),
        "timeout": TIMEOUT,
    }


def flush() -> None:
    """Makes all of them durable. Those that were closed are forgotten."""
    for store in list(_opened):
        try:
            summary = store.flush(timeout=TIMEOUT).wait()
        except kvtier.Error:
            _opened.remove(store)
            continue
        if summary is None or summary.done != 1:
            raise RuntimeError(f"a flush failed: {summary}")


ABOUT = {
    "promise": "host memory has it, and NVMe will",
    "checks": "CRC-64 of every byte, identity",
    "cold": "opened anew: host tier empty, O_DIRECT",
}
