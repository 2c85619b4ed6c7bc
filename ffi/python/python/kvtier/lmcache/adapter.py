"""The adapter that LMCache's controllers call."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import Any

from kvtier import Error, Invalid, KeyStatus, Queue, Ticket
from kvtier.complaints import Complaints
from kvtier.lmcache._compat import (
    AdapterUsage,
    Bitmap,
    KeyEntry,
    KeyListPage,
    L2AdapterInterface,
    L2AdapterListener,
    L2StoreResult,
    ObjectKey,
    address_of,
    layout_bytes,
    layout_of,
    seed_usage,
)
from kvtier.lmcache.completions import Completions
from kvtier.lmcache.inventory import Inventory, Known, Stored
from kvtier.lmcache.naming import Shape, name_of
from kvtier.lmcache.shelves import NoShelfError, Shelf
from kvtier.options import StoreOptions, parse_bytes

_log = logging.getLogger("kvtier.lmcache")


@dataclass(eq=False, slots=True)
class _Batch:
    """Objects of one task that go to, or come from, the same store."""

    shelf: Shelf
    positions: list[int] = field(default_factory=list)
    """Which of the task's they are."""
    names: list[bytes] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)


class _Keeping(Enum):
    """Whether what only memory holds is being written to NVMe."""

    UNDER_WAY = auto()
    AND_ONCE_MORE = auto()
    """More was stored meanwhile."""


class KvtierAdapter(L2AdapterInterface):
    """Keeps LMCache's objects in kvtier's tiers: pinned host memory and NVMe.

    The bytes of a load are those that were stored, or it is a miss. What fails is a miss or a store that failed, is
    counted, and is in `report_status()`. Only the constructor raises.
    """

    def __init__(self, params: Mapping[str, object], l1_memory_desc: object = None) -> None:
        """`params` are the `adapter_params`: those of `StoreOptions`, and `objects`, a list of sizes of objects.

        Raises `kvtier.Invalid` for a configuration that makes no sense and `kvtier.OpenFailed` when its directory or
        memory cannot be used.
        """
        given = dict(params)
        sizes = _sizes(given.pop("objects", []))
        options = StoreOptions.parse(given)
        if options.remotes or options.weigh_nvme:
            raise Invalid("kvtier's options 'remotes' and 'weigh_nvme' have no use here: give LMCache one more adapter")
        # What LMCache calls stored outlives this process. The rest of it is in `_keep`.
        options = replace(options, keep_at_exit=options.path is not None)
        super().__init__(max_capacity_bytes=options.host if options.nvme is None else options.nvme)
        self._timeout = options.timeout
        self._on_disk = options.path is not None
        self._keeping: dict[Shelf, _Keeping] = {}
        self._complaints = Complaints(_log, "LMCache recomputes")
        self._inventory = Inventory(options, sizes, self._complaints)
        seed_usage(self, *self._inventory.usage())
        self._stores: Completions[L2StoreResult] = Completions()
        self._lookups: Completions[Bitmap] = Completions()
        self._loads: Completions[Bitmap] = Completions()
        self._open = True

    def get_store_event_fd(self) -> int:
        """Readable when a store has ended."""
        return self._stores.fileno

    def get_lookup_and_lock_event_fd(self) -> int:
        """Readable when a look-up has ended."""
        return self._lookups.fileno

    def get_load_event_fd(self) -> int:
        """Readable when a load has ended."""
        return self._loads.fileno

    # Stores

    def submit_store_task(self, keys: list[ObjectKey], objects: list[Any]) -> int:
        """Starts to store objects."""
        batches = self._batches(keys, objects, self._shelf_for)

        def put(batch: _Batch, queue: Queue, tag: int) -> Ticket:
            buffers = batch.shelf.buffers(batch.memory, objects)
            self._inventory.wanted(batch.names)
            return batch.shelf.store.put(batch.names, buffers, timeout=self._timeout, queue=queue, tag=tag)

        def conclude(tickets: list[Ticket]) -> L2StoreResult:
            stored: list[Stored] = []
            written = 0
            for batch, ticket in zip(batches, tickets, strict=True):
                parts = zip(batch.positions, batch.names, batch.shapes, ticket.statuses(), strict=True)
                for at, name, shape, status in parts:
                    if status in (KeyStatus.DONE, KeyStatus.PRESENT):
                        stored.append((keys[at], name, shape, batch.shelf))
                        written += shape.size if status == KeyStatus.DONE else 0
                    else:
                        self._complaints.note("objects that were not stored", KeyStatus(status).name)
            self._tell_stored(stored)
            for batch in batches:
                self._keep(batch.shelf)
            return L2StoreResult(len(stored) == len(keys), written)

        return self._submit(self._stores, batches, put, conclude)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """Stores that have ended: whole, or failed."""
        return self._stores.take_all()

    # Look-ups and locks

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: Mapping[int, object]) -> int:
        """Looks objects up and locks those that are there. It ends at once, as it waits for no disk."""
        self._inventory.shelves.expect(layout_bytes(layout) for layout in group_layout_descs.values())
        found, gone = self._inventory.look_up(keys)
        self._tell_gone(gone)
        bits = Bitmap(len(keys))
        for at in found:
            bits.set(at)
        return self._lookups.submit(lambda _: bits, lambda _queue, _tag: [])

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """Which objects were there, once."""
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Takes back one lock of each object. Cannot fail."""
        self._inventory.unlock(keys)

    # Loads

    def submit_load_task(self, keys: list[ObjectKey], objects: list[Any]) -> int:
        """Starts to load objects into memory of LMCache."""
        entries = self._inventory.entries(keys)

        def shelf_of(at: int, shape: Shape) -> Shelf | None:
            entry = entries[at]
            # Bytes of another dtype or shape are not what is asked for.
            return self._inventory.shelves.find(shape.size) if entry is not None and entry.shape == shape else None

        batches = self._batches(keys, objects, shelf_of)

        def get(batch: _Batch, queue: Queue, tag: int) -> Ticket:
            buffers = batch.shelf.buffers(batch.memory, objects)
            return batch.shelf.store.get(batch.names, buffers, timeout=self._timeout, queue=queue, tag=tag)

        def conclude(tickets: list[Ticket]) -> Bitmap:
            bits = Bitmap(len(keys))
            loaded: list[ObjectKey] = []
            lost: list[Known] = []
            for batch, ticket in zip(batches, tickets, strict=True):
                for at, status in zip(batch.positions, ticket.statuses(), strict=True):
                    if status == KeyStatus.DONE:
                        bits.set(at)
                        loaded.append(keys[at])
                    elif (entry := entries[at]) is not None:
                        lost.append((keys[at], entry))
                        self._complaints.note("objects that did not load", KeyStatus(status).name)
            self._tell(self._notify_keys_accessed, loaded)
            self._tell_gone(self._inventory.check(lost))
            return bits

        return self._submit(self._loads, batches, get, conclude)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """Which objects were loaded, once."""
        return self._loads.take(task_id)

    # Eviction and usage

    def delete(self, keys: list[ObjectKey]) -> None:
        """Removes objects from memory and NVMe, except those that are locked."""
        self._tell_gone(self._inventory.delete(keys))

    def get_usage(self) -> AdapterUsage:
        """Bytes in all and by salt: those of the blocks that the objects take."""
        total, by_salt = self._inventory.usage()
        return AdapterUsage(
            total_bytes_used=total,
            total_capacity_bytes=self._max_capacity_bytes,
            bytes_by_cache_salt=MappingProxyType(by_salt),
        )

    def list_l2_keys(
        self, model_name: str | None = None, page_size: int = 500, cursor: str | None = None
    ) -> KeyListPage:
        """Objects in the order in which they were stored."""
        if page_size <= 0:
            raise ValueError(f"page_size is {page_size}")
        after = 0 if cursor is None else int(cursor)
        found = self._inventory.page(model_name, after, page_size + 1)
        page = found[:page_size]
        return KeyListPage(
            entries=tuple(KeyEntry(key.to_encoded_object_key(), entry.shape.size) for key, entry in page),
            next_page_token=str(page[-1][1].number) if len(found) > page_size else None,
        )

    def register_listener(self, listener: L2AdapterListener) -> None:
        """Tells a listener what happens from now on, and what is stored already: a restart's eviction needs it."""
        super().register_listener(listener)
        known = self._inventory.all()
        if known:
            listener.on_l2_keys_stored([key for key, _ in known], [entry.charged for _, entry in known])

    # Status and end

    def report_status(self) -> dict[str, Any]:
        """What the server shows under its status."""
        stores: dict[str, Any] = {}
        for shelf in self._inventory.shelves:
            with contextlib.suppress(Error):
                stores[str(shelf.block)] = shelf.store.stats()
        return {
            "is_healthy": self._open,
            "type": "kvtier",
            **self._inventory.counts(),
            "tasks_under_way": {
                "store": len(self._stores),
                "lookup": len(self._lookups),
                "load": len(self._loads),
            },
            "complaints": self._complaints.counts(),
            "stores": stores,
        }

    def close(self) -> None:
        """Cancels what is under way and closes the stores. No memory of LMCache is touched afterwards."""
        if self._open:
            self._open = False
            try:
                self._inventory.close()
            except Error as error:
                self._complaints.note("closings that were not clean", error)
            # LMCache keeps the adapter for its metrics.
            self._keeping.clear()
            for kind in (self._stores, self._lookups, self._loads):
                kind.close()

    # Parts of the above

    def _keep(self, shelf: Shelf) -> None:
        """Has what was stored written to NVMe now, and not only when memory is full: a crash then takes little.

        Its end is announced where stores are, so no thread is needed to go on when more was stored meanwhile.
        """
        if not self._on_disk or not self._open:
            return
        if shelf in self._keeping:
            self._keeping[shelf] = _Keeping.AND_ONCE_MORE
            return
        self._keeping[shelf] = _Keeping.UNDER_WAY

        def start(queue: Queue, tag: int) -> list[Ticket]:
            try:
                return [shelf.store.flush(timeout=self._timeout, queue=queue, tag=tag)]
            except Error as error:
                self._complaints.note("operations that kvtier refused", error)
                return []

        def conclude(tickets: list[Ticket]) -> None:
            if any(ticket.statuses()[0] == KeyStatus.FAILED for ticket in tickets):
                self._complaints.note("writes to NVMe that failed")
            self._inventory.sweep()
            if self._keeping.pop(shelf, None) == _Keeping.AND_ONCE_MORE and tickets:
                self._keep(shelf)

        self._stores.submit(conclude, start)

    def _shelf_for(self, _at: int, shape: Shape) -> Shelf | None:
        try:
            return self._inventory.need(shape.size)
        except NoShelfError as error:
            self._complaints.note("objects of a size that has no store", error)
            return None

    def _batches(
        self, keys: list[ObjectKey], objects: list[Any], shelf_of: Callable[[int, Shape], Shelf | None]
    ) -> list[_Batch]:
        batches: dict[Shelf, _Batch] = {}
        for at, (key, obj) in enumerate(zip(keys, objects, strict=True)):
            try:
                shape = Shape(obj.get_size(), layout_of(obj))
                address = address_of(obj)
            except Exception as error:  # whatever LMCache's class raises: its memory is not of a kind that is known
                self._complaints.note("objects that are not in host memory", repr(error))
                continue
            shelf = shelf_of(at, shape)
            if shelf is not None:
                batch = batches.setdefault(shelf, _Batch(shelf))
                batch.positions.append(at)
                batch.names.append(name_of(key, shape))
                batch.shapes.append(shape)
                batch.memory.append((address, shape.size))
        return list(batches.values())

    def _submit(
        self,
        kind: Completions[Any],
        batches: list[_Batch],
        operation: Callable[[_Batch, Queue, int], Ticket],
        conclude: Callable[[list[Ticket]], Any],
    ) -> int:
        def start(queue: Queue, tag: int) -> list[Ticket]:
            tickets: list[Ticket] = []
            sent: list[_Batch] = []
            for batch in batches:
                try:
                    tickets.append(operation(batch, queue, tag))
                    sent.append(batch)
                except Error as error:
                    self._complaints.note("operations that kvtier refused", error, len(batch.names))
            batches[:] = sent
            return tickets

        return kind.submit(conclude, start)

    def _tell_stored(self, stored: list[Stored]) -> None:
        if stored:
            more, gone = self._inventory.stored(stored)
            self._tell(self._notify_keys_stored, [one[0] for one in stored], more)
            self._tell_gone(gone)

    def _tell_gone(self, gone: list[Known]) -> None:
        self._tell(self._notify_keys_deleted, [key for key, _ in gone], [entry.charged for _, entry in gone])

    def _tell(self, notify: Callable[..., None], keys: list[ObjectKey], *more: list[int]) -> None:
        if keys:
            try:
                notify(keys, *more)
            except Exception as error:  # a listener's, which must not take a result with it
                self._complaints.note("listeners that failed", repr(error))


def _sizes(given: object) -> list[int]:
    if not isinstance(given, list):
        raise Invalid("kvtier's option 'objects' is no list of sizes")
    return [parse_bytes(size) for size in given]
