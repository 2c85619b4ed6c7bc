"""SGLang's radix tree with the linker on it, and requests that go through both as its scheduler sends them."""

import hashlib
import struct
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from unittest import TestCase, mock

from kvtier.sglang import KvtierLinker
from pools import KINDS, PAGE, SWA, WINDOW, configuration, process
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InitLoadBackParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.runtime_context import get_server_args
from sglang.test.kits.unified_radix_cache import fixtures
from sglang.test.kits.unified_radix_cache.mixins import UnifiedRadixCacheFixtures

import torch


def chain(tokens: Sequence[int]) -> list[bytes]:
    """A digest of each page and all before it: what its KV is decided by."""
    digest, digests = b"", []
    for first in range(0, len(tokens) // PAGE * PAGE, PAGE):
        digest = hashlib.sha256(digest + struct.pack(f"{PAGE}I", *tokens[first : first + PAGE])).digest()
        digests.append(digest)
    return digests


class LinkedTree(UnifiedRadixCacheFixtures, TestCase):
    """One engine without a model: the KV of a page is noise that its tokens decide."""

    def start(self, kind: str, config: dict[str, object]) -> None:
        self.cfg = configuration(kind)
        self._stack = ExitStack()
        self._stack.enter_context(process())

        def paged(**given):
            return PagedTokenToKVPoolAllocator(page_size=PAGE, **given)

        with mock.patch.object(fixtures, "TokenToKVPoolAllocator", paged):
            self.cache, self.allocator, self.requests = fixtures.build_fixture(self.cfg)
        params = self.cache.cache_init_params
        self.linker = KvtierLinker(get_server_args(), params, components=set(KINDS[kind]), extra_config=config)
        self.cache.init_cache_linker(self.linker)
        pool = self.allocator.get_kvcache()
        self.windows = SWA in KINDS[kind]
        self.pools = {"kv": pool.full_kv_pool, "swa": pool.swa_kv_pool} if self.windows else {"kv": pool}
        self.weights = 0
        """Decides the KV, too."""
        self.device_tokens = self.linker_tokens = 0

    def close(self) -> None:
        self.cache.release_host_resources()
        self._stack.close()

    def settle(self) -> None:
        """Lets the tree see the offloads that are over."""
        while self.cache.linker.pending_offloads:
            self.cache.check_hicache_events()

    def flush(self) -> None:
        self.cache.reset()
        self.requests.clear()
        self.allocator.clear()

    def _rows(self, name: str, slots: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        at = slots if name == "kv" or not self.windows else self.allocator.full_to_swa_index_mapping[slots]
        pool = self.pools[name]
        return [(buffer, at) for buffers in (pool.k_buffer, pool.v_buffer) for buffer in buffers]

    def _noise(self, name: str, number: int, digests: Sequence[bytes], like: torch.Tensor) -> torch.Tensor:
        size = PAGE * like[0].numel() * like.element_size()
        about = b"%s/%d/%d/" % (name.encode(), number, self.weights)
        noise = b"".join(hashlib.shake_128(about + digest).digest(size) for digest in digests)
        return torch.frombuffer(bytearray(noise), dtype=torch.uint8)

    def _compute(self, slots: torch.Tensor, digests: Sequence[bytes]) -> None:
        for name in self.pools:
            for number, (buffer, at) in enumerate(self._rows(name, slots)):
                noise = self._noise(name, number, digests, buffer).view(buffer.dtype)
                buffer[at] = noise.view(len(at), *buffer.shape[1:])

    def _check(self, slots: torch.Tensor, digests: Sequence[bytes]) -> None:
        for name in self.pools:
            # Of a window, what a continuation needs.
            last = min(len(digests), WINDOW) if name == "swa" else len(digests)
            for number, (buffer, at) in enumerate(self._rows(name, slots[len(slots) - last * PAGE :])):
                noise = self._noise(name, number, digests[len(digests) - last :], buffer)
                assert torch.equal(buffer[at].view(torch.uint8).flatten(), noise), f"wrong bytes in {name}"

    def request(self, tokens: Sequence[int], *, leaves: bool = False, cancelled: bool = False) -> None:
        """One request of whole pages: what is found is checked byte by byte, the rest is computed and inserted."""
        digests = chain(tokens)
        req = self._make_req(self.requests)
        req.rid = f"request {req.rid}"
        req.extra_key = None
        key = RadixKey(array("q", tokens))
        match = self.cache.match_prefix(MatchPrefixParams(key=key, req=req))
        if leaves:
            # Out of the queue before it was admitted.
            self.cache.linker.release_request(req.rid)
            self.requests.free(req)
            return
        self._apply_match_to_req(req, match)
        lock = self.cache.inc_lock_ref(req.last_node).to_dec_params()
        slots = self.cache.path_device_indices(req.last_node)[: match.device_prefix_len]
        self.device_tokens += len(slots)
        if match.host_hit_length:
            loaded, _ = self.cache.init_load_back(
                InitLoadBackParams(match.best_match_node, match.host_hit_length, req=req)
            )
            tail = self.cache.linker.private_load_indices.get(req.rid)
            if cancelled and loaded:
                self.cache.linker.release_request(req.rid)
                assert self.cache.linker.start_layer_wise_loading() == -1
                self.cache.dec_lock_ref(req.last_node, lock)
                self._free(tail, loaded)
                self.requests.free(req)
                return
            if loaded:
                self._load(req)
                slots = torch.cat([slots, tail])
                self.linker_tokens += loaded
        if len(slots):
            self._check(slots, digests[: len(slots) // PAGE])
        missing = len(tokens) - len(slots)
        if missing:
            new = self._room(missing)
            self._compute(new, digests[len(slots) // PAGE :])
            slots = torch.cat([slots, new])
        insert = InsertParams(key=key, value=slots.to(torch.int64), prev_prefix_len=match.device_prefix_len)
        if self.windows:
            insert.set_evicted_seqlen(SWA, req.kv.get_evicted_seqlen(SWA))
        self.cache.insert(insert)
        self.requests.free(req)
        self.cache.dec_lock_ref(match.last_device_node, lock)
        self.cache.check_hicache_events()

    def _load(self, req) -> None:
        counter = self.linker.layer_done_counter
        counter.set_consumer(self.cache.ready_to_load_host_cache())
        for layer in range(self.cfg.num_layers):
            counter.wait_until(layer)
        counter.set_consumer(-1)
        assert self.cache.finish_external_linker_loads([req]) == []

    def _free(self, tail: torch.Tensor, tokens: int) -> None:
        assert len(tail) == tokens
        self.allocator.free(tail)

    def _room(self, tokens: int) -> torch.Tensor:
        slots = self._alloc(self.allocator, tokens)
        if slots is None:
            self.settle()
            self.cache.evict(EvictParams(num_tokens=tokens, swa_num_tokens=tokens if self.windows else 0))
            slots = self._alloc(self.allocator, tokens)
        assert slots is not None, "no room on the device"
        return slots
