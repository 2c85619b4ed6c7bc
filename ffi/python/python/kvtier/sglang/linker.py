# ruff: noqa: ANN401 - what is SGLang's has no types here
"""kvtier as SGLang's external linker: it takes the place of SGLang's host pool, and of storage behind it."""

import contextlib
import dataclasses
import json
import logging
import time
import uuid
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from kvtier import log
from kvtier.complaints import Complaints
from kvtier.errors import Busy, Error
from kvtier.options import StoreOptions
from kvtier.sglang._compat import (
    PoolName,
    PoolTransfer,
    UnifiedCacheLinker,
    attention_rank,
    current_stream,
    replica,
    setting,
)
from kvtier.sglang.device_pools import device_pools, is_trailing, page_tensors, pages_of, whole_pages
from kvtier.sglang.holds import Hold, Holds, Need
from kvtier.sglang.loads import LayerCounter, Load, Offload
from kvtier.sglang.namespace import Rank, device_layout, weights
from kvtier.sglang.part import Part
from kvtier.sglang.scheduler import listen

_log = logging.getLogger("kvtier.sglang")

_TIMEOUT = 5.0
"""Seconds that a lookup may take if nothing is said: the scheduler waits for it."""

_MOST_OFFLOADS = 256
"""Under way at a time: of the 1024 operations that a store takes on, loads always find room."""

_REPORT_SECONDS = 60.0


@dataclass(slots=True)
class Counters:
    """Pages are counted once, however many pools have a part of them."""

    lookups: int = 0
    lookup_pages: int = 0
    """Pages asked for."""
    hit_pages: int = 0
    """Of them, promised."""
    loaded_pages: int = 0
    failed_loads: int = 0
    """Batches of which something did not reach the device: SGLang aborts their requests."""
    offloaded_pages: int = 0
    failed_offloads: int = 0
    """Nodes of SGLang's tree that were not stored. They are offered again when they are used again."""
    cancelled_loads: int = 0
    errors: int = 0


@dataclass(slots=True)
class _Queued:
    """A load that waits for the start of its batch."""

    hold: Hold | None
    pages: list[tuple[Part, list[str], list[int]]] = field(default_factory=list)
    """Keys, and pages of the device's pool."""
    count: int = 0


class KvtierLinker(UnifiedCacheLinker):
    """Keeps the pages of SGLang's device pools in pinned host memory, on NVMe and in remote stores.

    SGLang makes one in each of its schedulers (`--unified-cache-external-linker-backend dynamic`) and calls it from
    that thread alone. `extra_config` is `kvtier.options.StoreOptions`. Raises `kvtier.Error` for options that make no
    sense and stores that cannot be opened; afterwards whatever fails is a miss, and is counted and logged.
    """

    def __init__(
        self,
        server_args: Any,
        params: Any,
        *,
        components: set[Any],
        extra_config: dict[str, Any],
        forward_stream: Any = None,
    ) -> None:
        self._options = StoreOptions.parse({"timeout": _TIMEOUT, **extra_config})
        if not self._options.revision:
            self._options = dataclasses.replace(self._options, revision=weights())
        self.forward_stream = forward_stream
        self._group = device_pools(params.token_to_kv_pool_allocator.get_kvcache(), params, components)
        self.pools = self._group.entry_map
        rank = _rank(params, self._group.rank_replicated)
        several = max(rank.tp[1], rank.pp[1], rank.cp[1]) > 1
        self._alone = not several
        self._parts: dict[PoolName, list[Part]] = {}
        try:
            self._open(rank, params.page_size)
        except BaseException:
            self._close_parts()
            raise
        self.layer_done_counter = LayerCounter(self._options.timeout, current_stream if self._on_gpu else _no_stream)
        if PoolName.MAMBA in self.pools:
            params.req_to_token_pool.register_layer_transfer_counter(self.layer_done_counter)
        self._holds = Holds(self._options.timeout, several_ranks=several)
        self._queued: dict[str, _Queued] = {}
        self._offloads: deque[tuple[Offload, int]] = deque()
        self._stale = False
        self._used = False
        """Whether SGLang's own cache can have anything in it: since the last flush, something was asked for."""
        self.counters = Counters()
        self._complaints = Complaints(_log, "SGLang recomputes")
        self._reported = (time.monotonic(), Counters())
        listen(self)
        with contextlib.suppress(RuntimeError):  # another collects them already
            log.enable()

    def _open(self, rank: Rank, page_size: int) -> None:
        tensors = {name: page_tensors(entry) for name, entry in self.pools.items()}
        every = [some for parts in tensors.values() for some in parts]
        total = sum(some.num_pages * some.page_bytes for some in every)
        self._on_gpu = every[0].tensors[0].is_cuda
        streams = [current_stream()] if self._on_gpu else []
        if self._on_gpu and self.forward_stream is not None:
            streams.append(self.forward_stream.cuda_stream)
        for name, parts in tensors.items():
            opened = self._parts.setdefault(name, [])
            for some in parts:
                part = Part(
                    some,
                    self._options,
                    directory=f"linker/{rank.directory()}/{some.name}",
                    # As SGLang has divided the device's memory.
                    share=some.num_pages * some.page_bytes / total,
                    model=str(setting("model_path")),
                    layout=device_layout(rank, name.value, f"{some.name}:{some.describe()}", page_size),
                    streams=list(dict.fromkeys(streams)),
                    tokens_per_page=page_size,
                )
                opened.append(part)
                _log.info("kvtier: %s: pages of %d bytes, %s", some.name, some.page_bytes, part.store.stats())

    # What is there.

    def lookup(self, rid: str, transfers: list[PoolTransfer]) -> list[int]:
        """The lengths of prefixes that can be loaded, in pages. They stay loadable until the request is gone."""
        self._used = True
        keys = whole_pages(transfers)
        if self._stale or not keys:
            return []
        try:
            needs = []
            for transfer in self._group.resolve_transfers(transfers):
                window = max(1, len(transfer.keys)) if is_trailing(transfer) else None
                needs += [Need(part, window) for part in self._parts[transfer.name]]
            lengths = self._holds.lookup(rid, keys, needs) if needs else []
        except Exception as error:
            self._complain("a lookup", error)
            return []
        self.counters.lookups += 1
        self.counters.lookup_pages += len(keys)
        self.counters.hit_pages += lengths[-1] if lengths else 0
        return lengths

    # To the device.

    def load(self, rid: str, transfers: list[PoolTransfer]) -> bool:
        """Queues a load of pages that a lookup has promised."""
        if self._stale:
            # Of old weights. So it is on every rank.
            return False
        queued = _Queued(self._holds.take(rid))
        try:
            held = self._resolve_load(queued, transfers)
        except Exception as error:
            self._complain("a load", error)
            held = False
        if not held:
            if queued.hold is not None:
                queued.hold.release()
            if self._alone:
                # Recomputed. With other ranks this would end in different batches, and these in a deadlock.
                return False
            queued.pages.clear()
            queued.hold = None
        self._queued[rid] = queued
        return True

    def _pages(self, transfer: PoolTransfer) -> tuple[list[str], list[int]]:
        """The keys of a transfer, and the page of the device's pool of each."""
        keys = list(transfer.keys)
        pages = pages_of(self.pools[transfer.name], transfer.host_indices)
        if len(pages) != len(keys):
            raise ValueError(f"{len(pages)} pages for {len(keys)} keys in the pool {transfer.name.value}")
        return keys, pages

    def _resolve_load(self, queued: _Queued, transfers: list[PoolTransfer]) -> bool:
        resolved = self._group.resolve_transfers(transfers, allow_partial=True, allow_missing_kv=True)
        for transfer in resolved:
            keys, pages = self._pages(transfer)
            for part in self._parts[transfer.name]:
                if queued.hold is None or not queued.hold.covers(part, keys):
                    return False
                queued.pages.append((part, keys, pages))
        queued.count = len(whole_pages(transfers))
        return bool(resolved)

    def cancel_queued_load(self, rid: str) -> bool:
        """Forgets a load that was not started."""
        queued = self._queued.pop(rid, None)
        if queued is None:
            return False
        self.counters.cancelled_loads += 1
        if queued.hold is not None:
            queued.hold.release()
        return True

    def start_layer_wise_loading(self) -> int:
        """Starts what is queued."""
        if not self._queued:
            return -1
        batch, self._queued = list(self._queued.values()), {}
        load = Load([], [queued.hold for queued in batch if queued.hold is not None])
        load.doomed = any(queued.hold is None for queued in batch)
        wanted: dict[str, tuple[Part, list[str], list[int]]] = {}
        for queued in batch:
            for part, keys, pages in queued.pages:
                _, all_keys, all_pages = wanted.setdefault(part.name, (part, [], []))
                all_keys += keys
                all_pages += pages
        try:
            for part, keys, pages in wanted.values():
                load.tickets.append((part, part.onboard(keys, pages)))
        except Exception as error:
            self._complain("the start of a load", error)
            load.doomed = True
        self.counters.loaded_pages += sum(queued.count for queued in batch)
        return self.layer_done_counter.begin(load)

    def finish_layer_wise_loading(self, counter_index: int) -> bool:
        """Waits until a batch does not write any more. True if all of it is there."""
        landed = self.layer_done_counter.finish(counter_index)
        if not landed:
            self.counters.failed_loads += 1
            _log.error("kvtier: a load did not reach the device; SGLang aborts its requests")
        return landed

    # From the device.

    def offload(self, transfers: list[PoolTransfer], session_id: str | None = None) -> bool:
        """Queues the pages of one node of SGLang's tree."""
        self._used = True
        try:
            resolved = self._group.resolve_transfers(transfers, allow_partial=True)
        except Exception as error:
            self._complain("an offload", error)
            return False
        if not resolved:
            return False
        # From here on always taken on, as a failure if need be: all ranks must count the same offloads.
        offload = Offload([])
        try:
            if self._stale:
                offload.failed = True
            else:
                self._start_offload(offload, resolved)
        except Busy:
            offload.failed = True
        except Exception as error:
            offload.failed = True
            self._complain("an offload", error)
        self._offloads.append((offload, len(whole_pages(transfers))))
        return True

    def _start_offload(self, offload: Offload, resolved: list[PoolTransfer]) -> None:
        if len(self._offloads) >= _MOST_OFFLOADS:
            raise Busy(f"{_MOST_OFFLOADS} offloads are under way")
        # The copies wait for what is queued in the streams that the pools were registered with.
        for transfer in resolved:
            keys, pages = self._pages(transfer)
            for part in self._parts[transfer.name]:
                offload.tickets.append(part.offload(keys, pages))

    def num_completed_offloads(self) -> int:
        """Offloads that are over, up to the first that is not. SGLang asks in every round."""
        self._holds.expire()
        then, before = self._reported
        if time.monotonic() - then > _REPORT_SECONDS and before != self.counters:
            self._report("now")
        done = 0
        for offload, _ in self._offloads:
            if not offload.done:
                break
            done += 1
        return done

    def pop_completed_offload(self) -> bool:
        """Whether the oldest was stored as a whole."""
        offload, pages = self._offloads.popleft()
        stored = offload.end()
        if stored:
            self.counters.offloaded_pages += pages
        else:
            self.counters.failed_offloads += 1
        return stored

    # Its life.

    def weights_changed(self) -> None:
        """What is stored belongs to other weights now. `kvtier.sglang.scheduler` calls it after every update.

        SGLang usually has flushed its own cache by then. If not, that is full of the old weights, too, and nothing is
        served or stored until it is.
        """
        self._stale = True
        self._holds.clear()
        if not self._used:
            self._renew()
        else:
            _log.warning(
                "kvtier: weights were replaced without a flush: nothing is loaded or stored until there is one"
            )

    def prefilled(self, start: int, end: int, seconds: float) -> None:
        """SGLang computed a prompt's tokens `start..end`: from it the choice between loading and recomputing learns."""
        for part in self._all_parts():
            if part.slow:
                try:
                    part.store.observed_prefill(start, end, seconds)
                except Error as error:
                    self._complain("learning what recomputing takes", error)

    def _renew(self) -> None:
        # No other process can know these weights by a name that would be safe to share.
        salt = uuid.uuid4().hex
        for part in self._all_parts():
            part.salt = salt
        self._stale = False
        _log.info("kvtier: the weights were replaced: what was stored before is not served any more")

    def reset(self) -> None:
        """Ends everything under way. What is stored stays, unless weights were replaced since the last time."""
        self._quiesce()
        self._used = False
        if self._stale:
            self._renew()
        self._report("at a flush")

    def close(self) -> None:
        """Ends everything under way and closes the stores."""
        self._quiesce()
        self._report("at the end")
        self._close_parts()

    def _quiesce(self) -> None:
        for rid in list(self._queued):
            self.cancel_queued_load(rid)
        self.layer_done_counter.reset()
        self._holds.clear()
        end = time.monotonic() + self._options.timeout
        for offload, _ in self._offloads:
            offload.quiesce(end)
        self._offloads.clear()

    def _close_parts(self) -> None:
        for part in self._all_parts():
            part.close()
        self._parts.clear()

    # What can be seen of it.

    def stats(self) -> dict[str, Any]:
        """Counters of the linker, and of the store of each part."""
        stores = {}
        for part in self._all_parts():
            with contextlib.suppress(Error):
                stores[part.name] = part.store.stats()
        return {
            **asdict(self.counters),
            "holds": len(self._holds),
            "pinned": {part.name: part.pinned for part in self._all_parts()},
            "expired_holds": self._holds.expired,
            "late_lookups": self._holds.timeouts,
            "offloads_under_way": len(self._offloads),
            "stores": stores,
        }

    def _report(self, when: str) -> None:
        self._reported = time.monotonic(), Counters(**asdict(self.counters))
        _log.info("kvtier: %s: %s", when, json.dumps(self.stats()))

    def _complain(self, what: str, error: Exception) -> None:
        self.counters.errors += 1
        self._complaints.note(f"{what} failed", error)

    def _all_parts(self) -> list[Part]:
        return [part for parts in self._parts.values() for part in parts]


def _rank(params: Any, replicated: bool) -> Rank:
    return Rank(
        tp=attention_rank(),
        pp=(params.pp_rank, params.pp_size),
        cp=(params.attn_cp_rank, params.attn_cp_size),
        replicated=replicated,
        dp=replica(),
    )


def _no_stream() -> None:
    return None
