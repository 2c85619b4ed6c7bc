"""vLLM's `fs` tier below its tiering of host memory, called as the manager in its scheduler calls it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager, TransferJob
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

from contenders.base import Contender, Page, mapped

REQUESTS = 8
"""Jobs in flight: as many requests as store or load at once. vLLM's tier does the blocks of one job one by one."""

POLL = 0.0002
"""Seconds between looks for finished jobs; a scheduler's step is longer."""


def context(name: str) -> Any:
    """What a scheduler says of a request."""
    return ReqContext(req_id=name)


class VLLM(Contender):
    """The primary tier is one memory of pages, the first half written from and the second read to."""

    def pages(self) -> tuple[list[Page], list[Page]]:
        both = mapped(self.size, 2 * self.blocks)
        self._primary = memoryview(both[0][0].obj).cast("b", (2 * self.blocks, self.size))
        return both[: self.blocks], both[self.blocks :]

    def tier(self) -> SecondaryTierManager:
        """The tier, opened."""
        raise NotImplementedError

    @staticmethod
    def spec() -> Any:
        """What a tier reads of an offloading spec: a model without groups on one rank."""
        parallel = SimpleNamespace(
            rank=0,
            world_size=1,
            tp_size=1,
            pp_size=1,
            pcp_size=1,
            dcp_size=1,
            data_parallel_index=0,
            is_parallelism_agnostic=False,
        )
        group = SimpleNamespace(
            tokens_per_block=16, layer_names=("layer",), group_id=0, sliding_window_size_in_chunks=None
        )
        config = SimpleNamespace(
            groups=(group,),
            worker_kv_bytes_per_block=0,
            parallel=parallel,
            canonical_layout=False,
            replicated_layout=False,
            kv_cache_layout=None,
            model=SimpleNamespace(name="llama", dtype="bfloat16"),
            cache=SimpleNamespace(tokens_per_hash=16, blocks_per_chunk=1),
        )
        return SimpleNamespace(config=config, blocks_per_chunk=1, kv_events_config=None)

    def open(self) -> None:
        self._tier = self.tier()
        self._jobs = 0
        self._context = context("bench")
        self._tier.on_new_request(self._context)

    def close(self) -> None:
        self._tier.on_request_finished(self._context)
        self._tier.shutdown()

    @staticmethod
    def _keys(keys: list[bytes]) -> list[Any]:
        return [make_offload_key(key, 0) for key in keys]

    def _transfer(self, keys: list[bytes], first: int, load: bool) -> None:
        named = self._keys(keys)
        each = -(-len(named) // REQUESTS)
        pending = set()
        for i in range(0, len(named), each):
            some = named[i : i + each]
            self._jobs += 1
            chunks = np.arange(first + i, first + i + len(some))
            job = TransferJob(self._jobs, some, chunks, is_promotion=load, req_context=self._context)
            (self._tier.submit_load if load else self._tier.submit_store)(job)
            pending.add(self._jobs)
        while pending:
            for result in self._tier.get_finished_jobs():
                if not result.success:
                    raise RuntimeError("vLLM's tier says that a job failed")
                pending.discard(result.job_id)
            if pending:
                time.sleep(POLL)

    def write(self, keys: list[bytes]) -> None:
        self._transfer(keys, 0, load=False)

    def read(self, keys: list[bytes]) -> None:
        self._transfer(keys, self.blocks, load=True)

    def exists(self, keys: list[bytes]) -> int:
        # Each time a new request, or the tier would remember.
        asked = context(f"exists-{time.perf_counter_ns()}")
        self._tier.on_new_request(asked)
        found, pending = 0, self._keys(keys)
        while pending:
            answers = [(key, self._tier.lookup(key, asked)) for key in pending]
            found += sum(answer == LookupResult.HIT for _, answer in answers)
            pending = [key for key, answer in answers if answer == LookupResult.RETRY]
            self._tier.on_schedule_end(ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))
            if pending:
                time.sleep(POLL)
        self._tier.on_request_finished(asked)
        return found


class Fs(VLLM):
    """vLLM's `fs`."""

    promise = "the device has it; its cache may not, nor the directory"
    checks = "length"
    cold = "nothing to drop: O_DIRECT"

    def tier(self) -> SecondaryTierManager:
        return FileSystemTierManager(self.spec(), self._primary, "fs", root_dir=str(self.directory))
