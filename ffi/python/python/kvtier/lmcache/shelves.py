"""A store of kvtier for each size of object: blocks of one store have one size.

LMCache's objects have one size for each model and object group. The configured memory and disk are divided so that
every size has the same number of blocks, among the sizes that are known when the first is needed: those that `objects`
lists in the configuration, those of the last run, or those that look-ups have described. An object that is smaller than
a block takes a whole one. One that no block can hold is refused.
"""

import ctypes
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from kvtier import Error, Runs, Store
from kvtier.options import StoreOptions, describe

# A store that gets less of the whole than this is not worth its files.
_LEAST_SHARE = 1 / 64

Memory: TypeAlias = list[tuple[int, int]]
"""Address and length of each object."""


class NoShelfError(Exception):
    """There is no store for objects of that size."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """The store for objects of up to one size."""

    store: Store
    block: int
    """Bytes of a block."""
    share: float
    """Its part of the configured memory and disk."""

    def buffers(self, memory: Memory, keep: object) -> Runs:
        """Blocks made of memory that `keep` owns, filled up with bytes that mean nothing."""
        most = max((self.block - length for _, length in memory), default=0)
        if most == 0:
            return Runs([address for address, _ in memory], self.block, keep=keep)
        # Its own for every operation: loads write it.
        filling = (ctypes.c_char * most)()
        start = ctypes.addressof(filling)
        return Runs(
            [part for address, _ in memory for part in (address, start)],
            [part for _, length in memory for part in (length, self.block - length)],
            keep=(keep, filling),
        )


class Shelves:
    """All of them. One thread at a time opens; any may look."""

    def __init__(self, options: StoreOptions, sizes: Iterable[int], remembered: Mapping[int, float]) -> None:
        """Opens those of `sizes`, which the configuration lists, or without any those of the last run."""
        self._options = options
        self._fixed = frozenset(sizes)
        self._expected: set[int] = set()
        self._refused: dict[int, str] = {}
        # Replaced as a whole, so that it can be read without the lock.
        self._open: dict[int, Shelf] = {}
        self._opening = threading.Lock()
        self._closed = False
        whole = sum(self._fixed)
        shares = {size: size / whole for size in self._fixed} or dict(remembered)
        try:
            for size, share in sorted(shares.items()):
                self._add(size, share)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Shelf]:
        return iter(self._open.values())

    def find(self, size: int) -> Shelf | None:
        """Where objects of a size are."""
        shelves = self._open
        if (exact := shelves.get(size)) is not None:
            return exact
        return min((shelf for shelf in shelves.values() if shelf.block > size), key=lambda one: one.block, default=None)

    def expect(self, sizes: Iterable[int]) -> None:
        """Sizes that will be needed."""
        self._expected.update(size for size in sizes if size > 0)

    def need(self, size: int) -> Shelf:
        """Where objects of a size go. Opens a store for it, which can take seconds, if there is room for one.

        Raises `NoShelfError`.
        """
        if (exact := self._open.get(size)) is not None:
            return exact
        with self._opening:
            if size not in self._open and size not in self._refused and not self._fixed and not self._closed:
                self._try(size)
        if (shelf := self.find(size)) is not None:
            return shelf
        listed = ", ".join(str(block) for block in sorted(self._open)) or "no size"
        why = self._refused.get(size, "'objects' does not list that size")
        raise NoShelfError(f"objects of {size} bytes have no store beside those of {listed}: {why}")

    def shares(self) -> dict[int, float]:
        """The share of each size, for the next run."""
        return {size: shelf.share for size, shelf in self._open.items()}

    def close(self) -> None:
        """Closes all, for good."""
        with self._opening:
            self._closed = True
            shelves, self._open = self._open, {}
        for shelf in shelves.values():
            shelf.store.close()

    def _try(self, size: int) -> None:
        taken = sum(shelf.share for shelf in self._open.values())
        share = min(size / sum(self._expected | set(self._open) | {size}), 1.0 - taken)
        if share < _LEAST_SHARE:
            self._refused[size] = "they have all memory and disk; list every size in 'objects', or use another 'path'"
            return
        try:
            self._add(size, share)
        except (Error, OSError) as error:
            self._refused[size] = str(error)

    def _add(self, size: int, share: float) -> None:
        store = self._options.open(
            part=f"objects-{size}",
            share=share,
            block_bytes=size,
            model="lmcache",
            layout=describe(runtime="lmcache", names=1, object_bytes=size),
        )
        self._open = {**self._open, size: Shelf(store, size, share)}
