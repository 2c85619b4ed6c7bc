"""SGLang's radix tree and cache controller with their storage threads, without a model and without a server."""

import functools
import json
import unittest
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from host_pools import PAGE
from sglang.srt.environ import envs
from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.unified_cache.components.base import ComponentType
from sglang.srt.runtime_context import get_parallel
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from sglang.test.kits.unified_radix_cache import fixtures
from sglang.test.kits.unified_radix_cache.config import CacheConfig
from sglang.test.kits.unified_radix_cache.storage import UnifiedRadixCacheStorageFixtures

import torch

LAYERS = 2
HEADS, DIM = 2, 32


@functools.lru_cache(maxsize=256)
def kv_of(tokens: tuple[int, ...]) -> torch.Tensor:
    """What a model would have computed for these tokens: `[layer, 2, token, head, dim]`, decided by each prefix."""
    rows = []
    state = 1
    for token in tokens:
        state = (state * 1103515245 + token * 12345 + 7) % (1 << 31)
        rows.append(state)
    seeds = torch.tensor(rows, dtype=torch.int64)
    spread = torch.arange(1, LAYERS * 2 * HEADS * DIM + 1, dtype=torch.int64)
    numbers = (seeds[:, None] * spread[None, :]) % 30011
    return numbers.to(torch.int16).view(len(rows), LAYERS, 2, HEADS, DIM).permute(1, 2, 0, 3, 4)


class Engine(UnifiedRadixCacheStorageFixtures, unittest.TestCase):
    """One engine; its pools are made once, and storage is attached and detached as a server's administrator would."""

    cfg = CacheConfig(
        page_size=PAGE,
        components=(ComponentType.FULL,),
        num_layers=LAYERS,
        head_num=HEADS,
        head_dim=DIM,
        kv_size=PAGE * 400,
        max_context_len=PAGE * 400,
        max_num_reqs=64,
    )

    def start(self, layout: str = "page_first") -> None:
        fixtures.get_device = lambda *_args, **_kwargs: "cpu"
        self._stack = ExitStack()
        self._stack.enter_context(get_parallel().override(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1))
        self.cache, self.allocator, self.requests = fixtures.build_fixture(self.cfg, tree_core_backend="python")
        arguments = ServerArgs(
            model_path="dummy",
            page_size=PAGE,
            hicache_io_backend="kernel",
            hicache_mem_layout=layout,
            hicache_ratio=2.0,
            hicache_write_policy="write_through",
            hicache_storage_prefetch_policy="wait_complete",
            served_model_name="tiny",
        )
        set_global_server_args_for_scheduler(arguments)
        self.cache.init_hicache(arguments, self.cache.cache_init_params)
        fixtures.drop_hicache_atexit_pin(self.cache)
        self._device = self._get_full_kv_pool(self.allocator)
        self._count = 0

    def attach(self, config: Mapping[str, object], failures: float = 0.0) -> None:
        with envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(failures or None):
            done, message = self.cache.attach_storage_backend("dynamic", json.dumps(config), "tiny", "wait_complete")
        assert done, message
        self.cache.cache_controller.prefetch_capacity_limit = self.cache.cache_controller.mem_pool_host.size

    def detach(self) -> None:
        done, message = self.cache.detach_storage_backend()
        assert done, message

    @property
    def backend(self):
        backend = self.cache.cache_controller.storage_backend
        return getattr(backend, "_backend", backend)

    def flush(self) -> None:
        """Empties the device's pool and the host pool, as `/flush_cache` does."""
        self.cache.reset()
        self.requests.clear()
        self.allocator.clear()

    def request(self, tokens: Sequence[int], *, cancel: bool = False) -> tuple[int, int]:
        """One request: tokens that came from storage, and tokens that had to be computed. Every byte is checked."""
        self._count += 1
        handle = CacheRequestHandle(f"request {self._count}", 0)
        match = fixtures.match_prefix(self.cache, tokens)
        stored = 0
        if match.device_prefix_len + match.host_hit_length == 0:
            self.cache.prefetch_from_storage(handle, self.cache.root_node_handle(), array("q", tokens), None, None)
            if cancel:
                self.cache.check_hicache_events()
                self.cache.release_aborted_request(handle)
                return 0, 0
            self._run_prefetch_to_completion(self.cache, handle)
            stored = fixtures.match_prefix(self.cache, tokens).host_hit_length
        if fixtures.match_prefix(self.cache, tokens).host_hit_length:
            request = self._load_back_through_admission(self.cache, self.requests, tokens)
            self._finish_pending_loads(self.cache)
            self.requests.free(request)
        match = fixtures.match_prefix(self.cache, tokens)
        have = match.device_prefix_len
        want = kv_of(tuple(tokens))
        if have:
            self._check(self.cache.path_device_indices(match.last_device_node), want[:, :, :have])
        if have < len(tokens):
            self._compute(tokens, want)
        return stored, len(tokens) - have

    def _check(self, slots: torch.Tensor, want: torch.Tensor) -> None:
        for layer in range(LAYERS):
            for plane, buffer in enumerate((self._device.k_buffer, self._device.v_buffer)):
                assert torch.equal(buffer[layer][slots].view(torch.int16), want[layer, plane]), "wrong bytes"

    def _compute(self, tokens: Sequence[int], want: torch.Tensor) -> None:
        """Writes the KV of all tokens and inserts it: the tree keeps what it had and takes the rest."""
        self._insert(self.cache, self.allocator, self.requests, tokens)
        match = fixtures.match_prefix(self.cache, tokens)
        slots = self.cache.path_device_indices(match.last_device_node)
        for layer in range(LAYERS):
            for plane, buffer in enumerate((self._device.k_buffer, self._device.v_buffer)):
                buffer[layer][slots] = want[layer, plane].view(torch.bfloat16)
        node = match.last_device_node
        self._backup_node(self.cache, node)
        for part in self._path_chain(self.cache, node):
            self.cache.write_backup_storage(part)

    def settle(self) -> None:
        """Waits for what is being stored."""
        self._flush_l3_backups(self.cache, timeout=60.0)

    def close(self) -> None:
        self._stack.close()
