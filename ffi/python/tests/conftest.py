import ctypes
import faulthandler
from collections.abc import Iterator

import kvtier
import numpy as np
import pytest

BLOCK = 8192
MIB = 1 << 20

faulthandler.enable()


def page(seed: int, size: int = BLOCK) -> bytearray:
    """Bytes that differ from one seed to the next, and along the page."""
    i = np.arange(size)
    return bytearray(((seed * 31 + i * 7 + i // 251) & 0xFF).astype(np.uint8))


@pytest.fixture
def store() -> Iterator[kvtier.Store]:
    with kvtier.Store(BLOCK, 4 * MIB, model="m", revision="1") as store:
        yield store


@pytest.fixture
def slow():
    """A store with one operation that takes a minute and more: to load one block of a megabyte a million times."""
    with kvtier.Store(MIB, 64 * MIB) as store:
        assert store.put(bytes(16), page(0, MIB)).wait().done == 1
        target, times = bytearray(MIB), 1 << 20
        start = ctypes.addressof(ctypes.c_char.from_buffer(target))
        ticket = store.get(
            bytes(16 * times), kvtier.Runs(np.full(times, start, np.uint64), MIB, keep=target), timeout=3600
        )
        yield store, ticket
        ticket.cancel()
