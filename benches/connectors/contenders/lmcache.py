"""LMCache's L2 adapters, made by its factory and called as its controllers call them: tasks and eventfds."""

from __future__ import annotations

import argparse
import json
import os
import select
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from contenders.base import Contender, Page, mapped

REQUESTS = 8
"""Tasks in flight: as many requests as store or load at once."""

TIMEOUT_MS = 120_000


class LMCache(Contender):
    """The memory is one tensor with pages at multiples of 4096, described to the adapter as LMCache's L1 is."""

    def options(self) -> dict[str, object]:
        """`--l2-adapter`."""
        raise NotImplementedError

    def pages(self) -> tuple[list[Page], list[Page]]:
        both = mapped(self.size, 2 * self.blocks)
        memory = torch.frombuffer(both[0][0].obj, dtype=torch.uint8)
        self._memory = L1MemoryDesc(ptr=memory.data_ptr(), size=memory.numel(), align_bytes=4096)
        self._from, self._to = (
            [self._object(memory, i) for i in range(first, first + self.blocks)] for first in (0, self.blocks)
        )
        return both[: self.blocks], both[self.blocks :]

    def _object(self, memory: torch.Tensor, index: int) -> TensorMemoryObj:
        start = index * self.size
        meta = MemoryObjMetadata(
            shape=torch.Size([self.size]),
            dtype=torch.uint8,
            address=start,
            phy_size=self.size,
            fmt=MemoryFormat.KV_2LTD,
            ref_count=1,
        )
        return TensorMemoryObj(raw_data=memory[start : start + self.size], metadata=meta, parent_allocator=None)

    def open(self) -> None:
        parsed = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(self.options())]))
        self._adapter = create_l2_adapter(parsed.adapters[0], l1_memory_desc=self._memory)
        self._layout = {0: MemoryLayoutDesc(shapes=[], dtypes=[])}

    def close(self) -> None:
        self._adapter.close()

    def _keys(self, keys: list[bytes]) -> list[ObjectKey]:
        return [ObjectKey(chunk_hash=key, model_name="llama", kv_rank=0) for key in keys]

    @staticmethod
    def _split(things: list[Any]) -> Iterable[list[Any]]:
        each = -(-len(things) // REQUESTS)
        return (things[i : i + each] for i in range(0, len(things), each))

    @staticmethod
    def _wait(event: int, pending: set[int], collect: Callable[[set[int]], dict[int, Any]]) -> dict[int, Any]:
        poll = select.poll()
        poll.register(event, select.POLLIN)
        ended: dict[int, Any] = {}
        while pending:
            if not poll.poll(TIMEOUT_MS):
                raise TimeoutError("LMCache's adapter does not answer")
            os.eventfd_read(event)
            some = collect(pending)
            pending -= some.keys()
            ended |= some
        return ended

    def write(self, keys: list[bytes]) -> None:
        batches = zip(self._split(self._keys(keys)), self._split(self._from), strict=True)
        tasks = {self._adapter.submit_store_task(*batch) for batch in batches}
        event = self._adapter.get_store_event_fd()
        ended = self._wait(event, tasks, lambda _: self._adapter.pop_completed_store_tasks())
        if not all(result.is_successful() for result in ended.values()):
            raise RuntimeError("LMCache says that a store failed")

    def _bits(self, event: int, tasks: set[int], query: Callable[[int], Any]) -> int:
        def collect(pending: set[int]) -> dict[int, Any]:
            answers = {task: query(task) for task in pending}
            return {task: bitmap for task, bitmap in answers.items() if bitmap is not None}

        return sum(bitmap.popcount() for bitmap in self._wait(event, tasks, collect).values())

    def read(self, keys: list[bytes]) -> None:
        named = self._keys(keys)
        if self._found(named) != len(named):
            raise RuntimeError("LMCache does not find what it stored")
        batches = zip(self._split(named), self._split(self._to), strict=True)
        tasks = {self._adapter.submit_load_task(*batch) for batch in batches}
        found = self._bits(self._adapter.get_load_event_fd(), tasks, self._adapter.query_load_result)
        self._adapter.submit_unlock(named)
        if found != len(keys):
            raise RuntimeError(f"LMCache got {found} of {len(keys)} objects")

    def _found(self, keys: list[ObjectKey]) -> int:
        task = self._adapter.submit_lookup_and_lock_task(keys, self._layout)
        event = self._adapter.get_lookup_and_lock_event_fd()
        return self._bits(event, {task}, self._adapter.query_lookup_and_lock_result)

    def exists(self, keys: list[bytes]) -> int:
        named = self._keys(keys)
        found = self._found(named)
        self._adapter.submit_unlock(named)
        return found


class FsNative(LMCache):
    """LMCache's files written by threads of C++."""

    promise = "the device has it; its cache may not, nor the directory"
    checks = "length"
    cold = "nothing to drop: O_DIRECT"

    def options(self) -> dict[str, object]:
        return {"type": "fs_native", "base_path": str(self.directory), "num_workers": 4, "use_odirect": True}


class RawBlock(LMCache):
    """LMCache's slots on a block device: here a file with its space reserved, as kvtier's segments are."""

    promise = "the device has it; its cache may not, nor the index (a checkpoint a minute)"
    checks = "identity and length in the slot's header"
    cold = "nothing to drop: O_DIRECT"
    META = 16 << 20

    def __init__(self, directory: Path, size: int, blocks: int) -> None:
        super().__init__(directory, size, blocks)
        self._device = directory / "device"

    def options(self) -> dict[str, object]:
        return {
            "type": "raw_block",
            "device_path": str(self._device),
            "slot_bytes": self.size + 4096,
            "meta_total_bytes": self.META,
            "use_odirect": True,
            "load_checkpoint_on_init": False,
            "io_engine": "io_uring",
        }

    def open(self) -> None:
        if not self._device.exists():
            # Room for the blocks of a round and its measurement of pauses.
            slots = 2 * self.blocks + 8
            with self._device.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.META + slots * (self.size + 4096))
                os.fsync(file.fileno())
        super().open()
