"""SGLang's device pools without a server, and what its radix cache does with a linker."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence

import sglang.srt.managers.cache_controller  # noqa: F401 - first: SGLang's modules import each other in a circle
from kvtier.sglang import KvtierLinker
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool
from sglang.srt.mem_cache.unified_cache.components.base import ComponentType
from sglang.srt.runtime_context import get_parallel, get_server_args
from sglang.test.kits.unified_radix_cache import fixtures
from sglang.test.kits.unified_radix_cache.config import CacheConfig

import torch

fixtures.get_device = lambda *_: "cpu"

PAGE = 4
WINDOW = 2
"""Pages of a sliding window."""
FULL, SWA, MAMBA = ComponentType.FULL, ComponentType.SWA, ComponentType.MAMBA
KINDS = {"heads": (FULL,), "latent": (FULL,), "window": (FULL, SWA), "state": (FULL, MAMBA)}


def keys_of(prompt: str, pages: int) -> list[str]:
    """A chain of hashes, as SGLang makes them."""
    keys, digest = [], prompt.encode()
    for _ in range(pages):
        digest = hashlib.sha256(digest).digest()
        keys.append(digest.hex())
    return keys


def configuration(kind: str, dtype: torch.dtype = torch.bfloat16) -> CacheConfig:
    components = KINDS[kind]
    return CacheConfig(
        page_size=PAGE,
        components=components,
        num_layers=6,
        full_attention_layer_ids=(1, 4),
        sliding_window_size=WINDOW * PAGE if SWA in components else None,
        enable_mamba_extra_buffer=MAMBA in components,
        mamba_cache_size=60,
        dtype=dtype,
    )


def parameters(kind: str, dtype: torch.dtype = torch.bfloat16) -> CacheInitParams:
    cache, _, _ = fixtures.build_fixture(configuration(kind, dtype))
    if kind != "latent":
        return cache.cache_init_params
    pool = MLATokenToKVPool(
        size=256,
        page_size=PAGE,
        dtype=dtype,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        layer_num=6,
        device="cpu",
        enable_memory_saver=False,
    )
    allocator = TokenToKVPoolAllocator(size=256, dtype=dtype, device="cpu", kvcache=pool, need_sort=False)
    return dataclasses.replace(cache.cache_init_params, token_to_kv_pool_allocator=allocator)


def slots(pages: Sequence[int], size: int = PAGE) -> torch.Tensor:
    return torch.tensor([page * size + row for page in pages for row in range(size)], dtype=torch.int64)


class Device:
    """The pools of one rank, with a linker."""

    def __init__(self, kind: str, linker: KvtierLinker):
        self.kind = kind
        self.linker = linker
        self.parts = [part for parts in linker._parts.values() for part in parts]

    def fill(self, seed: int) -> None:
        """Puts noise in all pools."""
        noise = torch.Generator().manual_seed(seed)
        for part in self.parts:
            for tensor in part.pages.tensors:
                tensor.view(torch.uint8).random_(generator=noise)

    def page(self, part, page: int) -> list[bytes]:
        """The bytes of a page, tensor by tensor."""
        rows = part.pages.rows
        return [
            tensor[page * rows : (page + 1) * rows].contiguous().view(torch.uint8).numpy().tobytes()
            for tensor in part.pages.tensors
        ]

    def pool(self, name: str) -> list:
        return [part for part in self.parts if part.name.split("-")[0] == name]

    def transfers(self, keys: Sequence[str], pages: Sequence[int] | None = None) -> list[PoolTransfer]:
        """As SGLang's components make them for a prefix: all pages, a window, the last state."""

        def transfer(name, keys, pages, size=PAGE, policy=PoolHitPolicy.ALL_PAGES):
            at = None if pages is None else slots(pages, size)
            return PoolTransfer(name=name, keys=list(keys), device_indices=at, hit_policy=policy)

        made = [transfer(PoolName.KV, keys, pages)]
        trailing = PoolHitPolicy.TRAILING_PAGES
        if self.kind == "window":
            tail = pages and pages[-WINDOW:]
            made.append(transfer(PoolName.SWA, keys[-WINDOW:], tail, policy=trailing))
        if self.kind == "state":
            made.append(transfer(PoolName.MAMBA, keys[-1:], pages and pages[-1:], 1, trailing))
        return made

    def offload(self, keys: Sequence[str], pages: Sequence[int]) -> None:
        assert self.linker.offload(self.transfers(keys, pages))

    def ends(self, count: int, seconds: float = 60) -> list[bool]:
        """How the next `count` offloads ended."""
        end = time.monotonic() + seconds
        while self.linker.num_completed_offloads() < count:
            assert time.monotonic() < end, "an offload does not end"
            time.sleep(0.001)
        return [self.linker.pop_completed_offload() for _ in range(count)]

    def stored(self, prompt: str, pages: Sequence[int]) -> list[str]:
        """Offloads pages of a prompt."""
        keys = keys_of(prompt, len(pages))
        self.offload(keys, pages)
        assert self.ends(1) == [True]
        return keys

    def lookup(self, rid: str, keys: Sequence[str]) -> list[int]:
        return self.linker.lookup(rid, self.transfers(keys))

    def load(self, rid: str, keys: Sequence[str], pages: Sequence[int]) -> bool:
        """Loads what a lookup has promised, waiting for each layer as a forward pass does."""
        assert self.linker.load(rid, self.transfers(keys, pages))
        index = self.linker.start_layer_wise_loading()
        counter = self.linker.layer_done_counter
        counter.set_consumer(index)
        for layer in range(6):
            counter.wait_until(layer)
        counter.set_consumer(-1)
        return self.linker.finish_layer_wise_loading(index)

    def pinned(self) -> int:
        return sum(part.pinned for part in self.parts)


def process(rank: tuple[int, int] = (0, 1)) -> contextlib.AbstractContextManager:
    """SGLang believes that this is one of so many tensor-parallel ranks."""
    of = {f"{prefix}tp_size": rank[1] for prefix in ("", "attn_", "moe_")}
    place = {"tp_rank": rank[0], "attn_tp_rank": rank[0], "attn_dp_rank": 0, "attn_cp_rank": 0, "dp_rank": None}
    return get_parallel().override(**of, **place)


@contextlib.contextmanager
def device(
    kind: str = "heads",
    *,
    rank: tuple[int, int] = (0, 1),
    dtype: torch.dtype = torch.bfloat16,
    **config: object,
) -> Iterator[Device]:
    """The pools of one rank with a linker, closed at the end."""
    with process(rank):
        params = parameters(kind, dtype)
        config = {"host": "16MiB", **config}
        linker = KvtierLinker(get_server_args(), params, components=set(KINDS[kind]), extra_config=config)
    try:
        yield Device(kind, linker)
    finally:
        linker.close()
