"""SGLang's storage backends, called as its cache controller calls them: 128 pages at a time, from one thread."""

from __future__ import annotations

import hashlib
import types

import torch

# First, as the modules import each other.
import sglang.srt.managers.cache_controller as controller  # isort: skip
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolName
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

from contenders.base import Contender, Page, at

PAGE = 64
"""Tokens of a page."""

HEADS, HEAD_DIM = 8, 128
LAYER_BYTES = 2 * PAGE * HEADS * HEAD_DIM * 2
"""K and V of a page in one layer, in bfloat16: as many layers as the block size needs. 8 MiB is Llama-3.1-8B."""

Controller = controller.HiCacheController
Operation = types.SimpleNamespace


class SGLang(Contender):
    """The host pool is SGLang's own, in its default layout: two runs of bytes for each page."""

    prefix = True
    backend = "file"
    layout = "page_first"

    def pages(self) -> tuple[list[Page], list[Page]]:
        # A model's runner gives tensors one thread, when the model is on an accelerator.
        torch.set_num_threads(1)
        layers = self.size // LAYER_BYTES
        device = MHATokenToKVPool(
            size=PAGE * 2,
            page_size=PAGE,
            dtype=torch.bfloat16,
            head_num=HEADS,
            head_dim=HEAD_DIM,
            layer_num=layers,
            device="cpu",
            enable_memory_saver=False,
            enable_alt_stream=False,
        )
        self._host = MHATokenToKVPoolHost(
            device.get_device_pool_infos()[0].buffer_info,
            0,
            0,
            PAGE,
            self.layout,
            pin_memory=False,
            device="cpu",
            device_capacity_tokens=device.size,
            start_layer=0,
            end_layer=layers,
            host_token_capacity=2 * self.blocks * PAGE,
        )
        self._from, self._to = (self._host.alloc(self.blocks * PAGE) for _ in range(2))
        return self._views(self._from), self._views(self._to)

    def _views(self, tokens: torch.Tensor) -> list[Page]:
        starts, sizes = self._host.get_page_buffer_meta(tokens)
        runs = [at(start, size) for start, size in zip(starts, sizes, strict=True)]
        each = len(runs) // self.blocks
        return [runs[i : i + each] for i in range(0, len(runs), each)]

    def options(self) -> dict[str, object]:
        """`--hicache-storage-backend-extra-config`."""
        return {"file_storage_path": str(self.directory)}

    def open(self) -> None:
        model = "llama"
        config = HiCacheStorageConfig(
            0, 1, 0, 1, 0, 1, False, False, self.layout == "page_first", model, extra_config=self.options()
        )
        self._storage = StorageBackendFactory.create_backend(self.backend, config, self._host)
        self._storage.register_mem_pool_host(self._host)
        self._storage.register_mem_host_pool_v2(self._host, PoolName.KV)
        self._storage.on_host_pools_registered()
        self._controller = types.SimpleNamespace(
            storage_backend=self._storage, storage_host_pool=self._host, page_size=PAGE
        )

    def close(self) -> None:
        if hasattr(self._storage, "close"):
            self._storage.close()

    @staticmethod
    def _hashes(keys: list[bytes]) -> list[str]:
        """As long as SGLang's own."""
        return [hashlib.sha256(key).hexdigest() for key in keys]

    def write(self, keys: list[bytes]) -> None:
        hashes, batch = self._hashes(keys), controller.STORAGE_BATCH_SIZE
        write = Controller._generic_page_set if self.backend == "file" else Controller._page_set_zero_copy
        for i in range(0, len(hashes), batch):
            if not write(self._controller, hashes[i : i + batch], self._from[i * PAGE : (i + batch) * PAGE], None):
                raise RuntimeError("SGLang says that a write failed")

    def read(self, keys: list[bytes]) -> None:
        hashes, batch = self._hashes(keys), controller.STORAGE_BATCH_SIZE
        read = Controller._generic_page_get if self.backend == "file" else Controller._page_get_zero_copy
        operation = Operation(request_id="bench", is_terminated=lambda: False)
        for i in range(0, len(hashes), batch):
            some = hashes[i : i + batch]
            found = read(self._controller, operation, some, self._to[i * PAGE : (i + batch) * PAGE], None)
            if found != len(some):
                raise RuntimeError(f"SGLang got {found} of {len(some)} pages")

    def exists(self, keys: list[bytes]) -> int:
        return int(self._storage.batch_exists(self._hashes(keys)))


class File(SGLang):
    """SGLang's `file`."""

    promise = "the page cache has it"
    checks = "length"
