"""The rows of vLLM's CPU tier as blocks of one store.

A row holds one chunk of all ranks of the engine, one after the other. It is one block here: a chunk is there for all
ranks or for none, it is verified as a whole, and it is one read of the drive.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kvtier import Runs, Store
from kvtier.options import StoreOptions, describe
from kvtier.vllm._compat import MINOR, OffloadingConfig
from kvtier.vllm.identity import digest, ranks

_LEAST_ROWS = 64
"""Rows of host memory at least: what is on its way to and from the drive is there."""


class Rows:
    """Addresses of rows. The memory is vLLM's: it is there until the tier was shut down."""

    def __init__(self, view: memoryview) -> None:
        shape, strides = view.shape, view.strides
        if view.readonly or shape is None or strides is None or len(shape) != 2:
            raise TypeError(f"the CPU tier is no table of rows: {view.format}, {shape}, {strides}")
        # No reference to the view is kept: vLLM releases it, which fails while somebody has a buffer of it.
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        self.count = shape[0]
        self.bytes = strides[0]

    def runs(self, rows: Sequence[int]) -> Runs:
        """The memory of some rows."""
        return Runs([self._start + self._checked(row) * self.bytes for row in rows], self.bytes)

    def pieces(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """The same, one by one."""
        return [(self._start + self._checked(row) * self.bytes, self.bytes) for row in rows]

    def _checked(self, row: int) -> int:
        if not 0 <= row < self.count:
            raise IndexError(f"the CPU tier has no row {row}, only {self.count}")
        return row


def open_store(options: StoreOptions, given: Mapping[str, object], config: OffloadingConfig, rows: Rows) -> Store:
    """Opens the store of an engine. Every replica of data parallelism has a scheduler, and so a store, of its own."""
    least = _LEAST_ROWS * rows.bytes
    if "host" not in given and options.host < least:
        options = replace(options, host=least)
    slow = bool(options.remotes) or options.weigh_nvme
    chunk = config.cache.blocks_per_chunk * config.groups[0].tokens_per_block
    return options.open(
        # A directory has blocks of one size: another chunk or number of ranks is another directory.
        part=f"vllm-tier-dp{config.parallel.data_parallel_index}-{rows.bytes}",
        block_bytes=rows.bytes,
        model=config.model.name,
        layout=_layout(config),
        tokens_per_block=chunk if slow else None,
    )


def _layout(config: OffloadingConfig) -> str:
    model = Path(config.model.name)
    return describe(
        runtime=f"vllm-tier-{MINOR}",
        # All that a tier is told of the model is its name: of a hub's repository, `revision` says which weights.
        weights=digest(model) if model.is_dir() else None,
        kv_dtype=config.model.dtype,
        kv_layout=config.kv_cache_layout,
        canonical=config.canonical_layout,
        replicated=config.replicated_layout,
        groups=[(group.tokens_per_block, group.layer_names) for group in config.groups],
        blocks_per_chunk=config.cache.blocks_per_chunk,
        tokens_per_hash=config.cache.tokens_per_hash,
        worker_block_bytes=config.worker_kv_bytes_per_block,
        **ranks(config),
    )
