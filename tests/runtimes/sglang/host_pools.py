"""SGLang's own host pools on the CPU, and a storage backend attached to them as its controller does it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvtier.sglang import KvtierStorage
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolName
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

import torch

PAGE = 16
"""Tokens of a page."""
PAGES = 24
LAYERS = 3
MHA_LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")
MLA_LAYOUTS = ("layer_first", "page_first", "page_first_direct")


def mha(layout: str = "page_first", dtype: torch.dtype = torch.bfloat16, layers: int = LAYERS) -> Any:
    """A host pool of K and V: pages of 4 KiB per layer."""
    device = MHATokenToKVPool(
        size=PAGE * PAGES,
        page_size=PAGE,
        dtype=dtype,
        head_num=2,
        head_dim=32,
        layer_num=layers,
        device="cpu",
        enable_memory_saver=False,
    )
    info = device.get_device_pool_infos()[0].buffer_info
    return MHATokenToKVPoolHost(info, **_common(layout, layers))


def mla(layout: str = "page_first", dtype: torch.dtype = torch.bfloat16) -> Any:
    """A host pool of latents."""
    device = MLATokenToKVPool(
        size=PAGE * PAGES,
        page_size=PAGE,
        dtype=dtype,
        kv_lora_rank=64,
        qk_rope_head_dim=64,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    info = device.get_device_pool_infos()[0].buffer_info
    return MLATokenToKVPoolHost(info, target_layer_num=LAYERS, **_common(layout, LAYERS))


def _common(layout: str, layers: int) -> dict[str, Any]:
    return {
        "host_to_device_ratio": 1.0,
        "host_size": 0,
        "page_size": PAGE,
        "layout": layout,
        "pin_memory": False,
        "device_capacity_tokens": PAGE * PAGES,
        "start_layer": 0,
        "end_layer": layers,
    }


def slots(pages: Sequence[int]) -> torch.Tensor:
    """The slots of the tokens of these pages."""
    return torch.tensor([slot for page in pages for slot in range(page * PAGE, (page + 1) * PAGE)], dtype=torch.int64)


def fill(pool: Any, seed: int) -> None:
    """Random bytes everywhere. No NaN is lost by it: bytes are compared, not numbers."""
    raw = pool.kv_buffer.view(torch.uint8)
    raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)))


def content(pool: Any, page: int) -> bytes:
    """The bytes of a page, in the order of SGLang's flat pages."""
    return pool.get_data_page(page * PAGE, flat=True).contiguous().view(torch.uint8).numpy().tobytes()


def config(extra: Mapping[str, object], **changes: Any) -> HiCacheStorageConfig:
    """What SGLang says to a backend at its construction."""
    fields: dict[str, Any] = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": True,
        "is_page_first_layout": False,
        "model_name": "llama",
        "extra_config": dict(extra),
    }
    return HiCacheStorageConfig(**{**fields, **changes})


def options(path: Path | None = None, **more: object) -> dict[str, object]:
    """kvtier's part of the configuration."""
    given: dict[str, object] = {
        "host": "4MiB",
        "interface_v1": 1,
        "class_name": "KvtierStorage",
        "revision": "1",
        **more,
    }
    if path is not None:
        given |= {"path": str(path), "nvme": "64MiB"}
    return given


def attach(
    extra: Mapping[str, object], pool: Any, sidecars: Mapping[PoolName, Any] = {}, **changes: Any
) -> KvtierStorage:
    """A backend with its pools, after the calls that SGLang makes."""
    backend = KvtierStorage(config(extra, **changes), {})
    backend.register_mem_pool_host(pool)
    for name, sidecar in {PoolName.KV: pool, **sidecars}.items():
        backend.register_mem_host_pool_v2(sidecar, name)
    backend.on_host_pools_registered()
    return backend


class Controller:
    """The parts of SGLang's controller that move pages between a host pool and its backend."""

    def __init__(self, backend: Any, pool: Any):
        self.storage_backend = backend
        self.storage_host_pool = pool
        self.page_size = PAGE
        self._operation = SimpleNamespace(request_id="request", is_terminated=lambda: False)

    def save(self, keys: Sequence[str], pages: Sequence[int], *, generic: bool = False) -> bool:
        """Whether all pages were stored."""
        run = HiCacheController._generic_page_set if generic else HiCacheController._page_set_zero_copy
        return run(self, list(keys), slots(pages))

    def load(self, keys: Sequence[str], pages: Sequence[int], *, generic: bool = False) -> int:
        """How many pages were loaded before the first that was not."""
        run = HiCacheController._generic_page_get if generic else HiCacheController._page_get_zero_copy
        return run(self, self._operation, list(keys), slots(pages))


def keys(count: int, seed: int = 0) -> list[str]:
    """Names of pages as SGLang makes them: 64 hexadecimal digits."""
    return [f"{seed * 1000003 + at:064x}" for at in range(1, count + 1)]
