"""What is stored: the catalogue, checked against the stores and kept over restarts by the journal.

The stores have the last word. They drop blocks when they are full, at any time and without saying so; the catalogue
learns of it when an object is looked up or does not load, and some objects are checked whenever others are stored. So
what it says of usage follows the truth, and an object that it does not know is a miss.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from kvtier import Error, Presence, Removal
from kvtier.complaints import Complaints
from kvtier.lmcache._compat import ObjectKey
from kvtier.lmcache.catalogue import Catalogue, Entry
from kvtier.lmcache.journal import Journal
from kvtier.lmcache.locks import Locks, Pin
from kvtier.lmcache.naming import Shape, name_of
from kvtier.lmcache.shelves import Shelf, Shelves
from kvtier.options import StoreOptions

# Objects that are checked whenever others are stored: these, and twice as many as are stored.
_CHECKED = 16
# Objects that are looked up at once when the journal is read.
_AT_ONCE = 4096

Known: TypeAlias = tuple[ObjectKey, Entry]
Stored: TypeAlias = tuple[ObjectKey, bytes, Shape, Shelf]
"""An object, what it is called, what it is, and where it is."""


class Inventory:
    """All objects, the locks on them, and the stores that they are in. For several threads."""

    def __init__(self, options: StoreOptions, sizes: Iterable[int], complaints: Complaints) -> None:
        """Opens the journal and the stores. Raises `kvtier.Error`."""
        self._complaints = complaints
        self._timeout = options.timeout
        # Nothing that can wait for a disk happens under it.
        self._lock = threading.Lock()
        self._catalogue = Catalogue()
        self._locks = Locks()
        # Names of deleted objects that a store could not let go of yet, as it was writing or reading them.
        self._lingering: dict[bytes, Shelf] = {}
        # The journal's disk may hang: look-ups and loads never take this.
        self._journal_lock = threading.Lock()
        self._journal = None if options.path is None else Journal(Path(options.path) / "objects.journal")
        try:
            shares = self._read()
            self.shelves = Shelves(options, sizes, shares)
            self._recover()
        except BaseException:
            if self._journal is not None:
                self._journal.close()
            raise

    def need(self, size: int) -> Shelf:
        """Where objects of a size go. Raises `NoShelfError`."""
        before = self.shelves.shares()
        shelf = self.shelves.need(size)
        if (after := self.shelves.shares()) != before:
            self._write(["shelf", size, share] for size, share in after.items())
        return shelf

    def look_up(self, keys: list[ObjectKey]) -> tuple[list[int], list[Known]]:
        """Locks the objects that are there. Returns which they are, and what turned out to be gone."""
        with self._lock:
            entries = [self._catalogue.get(key) for key in keys]
        found: list[int] = []
        gone: list[Known] = []
        pins: list[Pin] = []
        for shelf, positions in self._by_shelf(entries).items():
            names = [entry.name for at in positions if (entry := entries[at])]
            where = self._where(shelf, names)
            found.extend(at for at, there in zip(positions, where, strict=True) if there)
            gone.extend(
                (keys[at], entry)
                for at, there in zip(positions, where, strict=True)
                if not there and (entry := entries[at])
            )
            in_memory = [name for name, there in zip(names, where, strict=True) if there == Presence.HOST]
            if in_memory:
                try:
                    pins.append(shelf.store.pin(in_memory, timeout=self._timeout))
                except Error:
                    # They are locked all the same, only not kept in memory.
                    self._complaints.note("locks that keep nothing in memory")
        with self._lock:
            if found:
                self._locks.lock({keys[at] for at in found}, pins)
            gone = [known for known in gone if self._drop(known)]
        return found, gone

    def unlock(self, keys: Iterable[ObjectKey]) -> None:
        """Takes back one lock of each."""
        with self._lock:
            for key in keys:
                self._locks.unlock(key)

    def entries(self, keys: Iterable[ObjectKey]) -> list[Entry | None]:
        """What is known of objects."""
        with self._lock:
            return [self._catalogue.get(key) for key in keys]

    def stored(self, objects: list[Stored]) -> tuple[list[int], list[Known]]:
        """Notes objects that are stored now. Returns the bytes that each takes more than before, and what is gone."""
        more: list[int] = []
        replaced: list[Entry] = []
        with self._lock:
            for key, name, shape, shelf in objects:
                before = self._catalogue.add(key, name, shape, shelf.block)
                more.append(shelf.block - (before.charged if before else 0))
                if before is not None and before.name != name:
                    replaced.append(before)
            some = self._catalogue.oldest_checked(2 * len(objects) + _CHECKED)
            self._remove(replaced)
        self._write(["+", *_fields(key), shape.size, shape.layout] for key, _, shape, _ in objects)
        return more, self.check(some)

    def check(self, some: list[Known]) -> list[Known]:
        """Forgets those that are not in the stores any more, and returns them."""
        entries: list[Entry | None] = [entry for _, entry in some]
        gone: list[Known] = []
        for shelf, positions in self._by_shelf(entries).items():
            where = self._where(shelf, [some[at][1].name for at in positions])
            gone.extend(some[at] for at, there in zip(positions, where, strict=True) if not there)
        if not gone:
            return gone
        with self._lock:
            return [known for known in gone if self._drop(known)]

    def delete(self, keys: Iterable[ObjectKey]) -> list[Known]:
        """Forgets objects that are not locked, and returns them. Their blocks go when nothing uses them any more."""
        with self._lock:
            some = [(key, entry) for key in dict.fromkeys(keys) if (entry := self._catalogue.get(key))]
            gone = [known for known in some if known[0] not in self._locks and self._drop(known)]
            self._remove(entry for _, entry in gone)
        self._write(["-", *_fields(key)] for key, _ in gone)
        return gone

    def wanted(self, names: Iterable[bytes]) -> None:
        """These are about to be stored: their blocks stay, although objects of these names were deleted."""
        with self._lock:
            for name in names:
                self._lingering.pop(name, None)

    def sweep(self) -> None:
        """Removes the blocks of deleted objects that were in use at the time."""
        with self._lock:
            self._remove(())

    def usage(self) -> tuple[int, dict[str, int]]:
        """Bytes in all, and of each salt."""
        with self._lock:
            return self._catalogue.usage()

    def page(self, model: str | None, after: int, most: int) -> list[Known]:
        """Some objects, in the order in which they were stored."""
        with self._lock:
            return self._catalogue.page(model, after, most)

    def all(self) -> list[Known]:
        """All objects."""
        with self._lock:
            return list(self._catalogue)

    def counts(self) -> dict[str, int]:
        """For a report."""
        with self._lock:
            return {
                "objects": len(self._catalogue),
                "locked_objects": len(self._locks),
                "pins": self._locks.pins,
                "deleted_but_in_use": len(self._lingering),
            }

    def close(self) -> None:
        """Ends all locks and closes the stores and the journal."""
        with self._lock:
            self._locks.clear()
            self._catalogue = Catalogue()
            self._lingering.clear()
        try:
            self.shelves.close()
        finally:
            with self._journal_lock:
                if self._journal is not None:
                    self._journal.close()
                    self._journal = None

    def _by_shelf(self, entries: Sequence[Entry | None]) -> dict[Shelf, list[int]]:
        by_shelf: dict[Shelf, list[int]] = {}
        for at, entry in enumerate(entries):
            if entry is not None and (shelf := self.shelves.find(entry.shape.size)) is not None:
                by_shelf.setdefault(shelf, []).append(at)
        return by_shelf

    def _where(self, shelf: Shelf, names: list[bytes]) -> bytes:
        try:
            return shelf.store.exists(names)
        except Error as error:
            self._complaints.note("look-ups that kvtier refused", error)
            return bytes(len(names))

    def _drop(self, known: Known) -> bool:
        """Under the lock: unless it was stored anew meanwhile."""
        key, entry = known
        return self._catalogue.get(key) is entry and self._catalogue.remove(key) is not None

    def _remove(self, entries: Iterable[Entry]) -> None:
        """Under the lock, so that nothing that is `wanted` meanwhile goes."""
        for entry in entries:
            if (shelf := self.shelves.find(entry.shape.size)) is not None:
                self._lingering[entry.name] = shelf
        by_shelf: dict[Shelf, list[bytes]] = {}
        for name, shelf in self._lingering.items():
            by_shelf.setdefault(shelf, []).append(name)
        for shelf, names in by_shelf.items():
            try:
                removals = shelf.store.remove(names)
            except Error as error:
                self._complaints.note("deletions that kvtier refused", error)
                continue
            for name, removal in zip(names, removals, strict=True):
                if removal != Removal.IN_USE:
                    del self._lingering[name]

    # The journal

    def _read(self) -> dict[int, float]:
        """Fills the catalogue. Returns the share of each size in the last run."""
        shares: dict[int, float] = {}
        for record in self._journal.read() if self._journal else ():
            match record:
                case ["+", str(model), int(rank), int(group), str(salt), str(chunk), int(size), str(layout)]:
                    key, shape = _key(model, rank, group, salt, chunk), Shape(size, layout)
                    self._catalogue.add(key, name_of(key, shape), shape, size)
                case ["-", str(model), int(rank), int(group), str(salt), str(chunk)]:
                    self._catalogue.remove(_key(model, rank, group, salt, chunk))
                case ["shelf", int(size), float(share)]:
                    shares[size] = share
                case _:
                    self._complaints.note("records of the journal that mean nothing")
        return shares

    def _recover(self) -> None:
        """Forgets what the stores do not have, and writes the journal anew."""
        known = list(self._catalogue)
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            self.check(some)
        for key, entry in known:
            shelf = self.shelves.find(entry.shape.size)
            if shelf is None:
                self._catalogue.remove(key)
            elif shelf.block != entry.charged and self._catalogue.get(key) is entry:
                self._catalogue.add(key, entry.name, entry.shape, shelf.block)
        self._compact()

    def _write(self, records: Iterable[list[Any]]) -> None:
        with self._journal_lock:
            if self._journal is None:
                return
            try:
                self._journal.write(records)
                if self._journal.stale(len(self._catalogue)):
                    self._compact()
            except OSError as error:
                self._complaints.note("writes of the journal that failed", error)

    def _compact(self) -> None:
        if self._journal is not None:
            shelves = [["shelf", size, share] for size, share in self.shelves.shares().items()]
            objects = [["+", *_fields(key), entry.shape.size, entry.shape.layout] for key, entry in self.all()]
            self._journal.replace(shelves + objects)


def _fields(key: ObjectKey) -> list[Any]:
    return [key.model_name, key.kv_rank, key.object_group_id, key.cache_salt, key.chunk_hash.hex()]


def _key(model: str, rank: int, group: int, salt: str, chunk: str) -> ObjectKey:
    return ObjectKey(
        chunk_hash=bytes.fromhex(chunk), model_name=model, kv_rank=rank, object_group_id=group, cache_salt=salt
    )
