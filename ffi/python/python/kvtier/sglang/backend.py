"""The storage backend: SGLang's calls, each of which becomes one of kvtier's for all of its pages."""

import dataclasses
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence

from kvtier import log
from kvtier._enums import Presence
from kvtier.complaints import Complaints
from kvtier.errors import Error
from kvtier.options import StoreOptions
from kvtier.sglang import hits
from kvtier.sglang._compat import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    HostPool,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
    StorageMetrics,
    Tensor,
)
from kvtier.sglang.meter import Meter
from kvtier.sglang.namespace import Rank, layout, pool_name, weights
from kvtier.sglang.pages import Pages, pages_of
from kvtier.sglang.pool import PoolStore, Slow
from kvtier.sglang.scheduler import epoch, listen

logger = logging.getLogger("kvtier.sglang")

_FACTORY = ("backend_name", "module_path", "class_name", "interface_v1", "allocator")
"""What the configuration says to SGLang, and not to kvtier."""
_KV = "kv"


class KvtierStorage(HiCacheStorage):
    """Keeps pages of SGLang's host pools: in host memory, on NVMe and in remote stores, one store for each pool.

    Two of SGLang's threads look pages up and load them, one stores them. What fails is a miss.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: Mapping[str, object] | None = None) -> None:
        """Raises `kvtier.Invalid` for a configuration that cannot work. No store is open yet."""
        given = {name: value for name, value in (storage_config.extra_config or {}).items() if name not in _FACTORY}
        self._options = StoreOptions.parse(given)
        self._timeout = self._options.timeout if "timeout" in given else None
        self._zero_copy = bool((storage_config.extra_config or {}).get("interface_v1"))
        self._rank = Rank.of(storage_config)
        self._model = storage_config.model_name or ""
        self._measure = storage_config.enable_storage_metrics
        if not self._options.revision:
            self._options = dataclasses.replace(self._options, revision=weights())
        if self._rank.replicated:
            # SGLang would let the first rank alone store the pages of all. But every rank has a store of its own.
            storage_config.is_mla_model = False
        self._hosts: dict[str, HostPool] = {}
        self._pools: dict[str, PoolStore] = {}
        self._anchor: PoolStore | None = None
        self._total = 0
        # A part of every key. Pages of the weights that the server started with have none.
        self._salt = epoch()
        self._meter = Meter()
        self._complaints = Complaints(logger, "SGLang recomputes")
        if not self._zero_copy:
            logger.warning('kvtier: without "interface_v1": 1 SGLang copies every page once more than needed')
        try:
            log.enable()
        except RuntimeError as error:
            logger.warning("kvtier: its own messages go elsewhere: %s", error)
        listen(self)

    # The pools, of which the first is that of the KV cache.

    def register_mem_pool_host(self, mem_pool_host: HostPool) -> None:
        """The pool of the KV cache. Raises `kvtier.Invalid` if its pages cannot be addressed."""
        super().register_mem_pool_host(mem_pool_host)
        # Now, as SGLang can still take back what it began.
        pages_of(mem_pool_host, _KV)
        self._hosts[_KV] = mem_pool_host

    def register_mem_host_pool_v2(self, host_pool: HostPool, host_pool_name: PoolName | str) -> None:
        """Any of the pools, also one that comes after the stores were opened."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        name = pool_name(host_pool_name)
        self._hosts[name] = host_pool
        if self._pools and name not in self._pools:
            self._open([name])

    def on_host_pools_registered(self) -> None:
        """Opens the stores, which share the configured sizes as their pools do."""
        try:
            self._open(list(self._hosts))
        except BaseException:
            self.close()
            raise

    def _open(self, names: Sequence[str]) -> None:
        addressed = {name: pages_of(self._hosts[name], name) for name in names}
        pages = {name: found for name, found in addressed.items() if found is not None}
        volumes = {name: _volume(self._hosts[name], found) for name, found in pages.items()}
        # A pool that comes later has its share on top.
        self._total = self._total or sum(volumes.values())
        for name, found in pages.items():
            # Of several pools one alone is of no use.
            slow = self._slow() if list(pages) == [_KV] else None
            options = self._options if slow else dataclasses.replace(self._options, remotes=(), weigh_nvme=False)
            store = options.open(
                part=f"{self._rank.directory()}/{name}",
                share=volumes[name] / self._total,
                block_bytes=found.page_bytes,
                model=self._model,
                layout=layout(self._rank, name, self._hosts[name], found.sizes),
                tokens_per_block=None if slow is None else self._hosts[name].page_size,
            )
            self._pools[name] = PoolStore(name, store, found, slow, self._meter, self._complaints)
            logger.info(
                "kvtier: pool %s: pages of %d bytes in %d runs, %s",
                name,
                found.page_bytes,
                len(found.sizes),
                store.stats(),
            )
        self._anchor = self._pools.get(_KV)

    # Zero copy, for the KV cache.

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """How many pages are there before the first that is not."""
        if self._anchor is None:
            return 0
        named = self._salted(keys) if self._zero_copy else self._flat(keys)
        return self._anchor.prefix(named, self._patience(len(keys)))

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Loads pages into the host pool. After the time that SGLang waits, those that are there by then."""
        if self._anchor is None:
            return [False] * len(keys)
        return self._anchor.load(self._salted(keys), host_indices, self._patience(len(keys)))

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Stores pages of the host pool. When it returns, kvtier has them in its own memory."""
        if self._anchor is None:
            return [False] * len(keys)
        return self._anchor.save(self._salted(keys), host_indices, self._patience(len(keys)))

    # Several pools.

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The prefixes that all pools can restore."""
        salted = self._salted(keys)
        found = len(keys) if self._anchor is None else self._anchor.prefix(salted, self._patience(len(keys)))
        transfers = pool_transfers or []
        pools = {pool_name(transfer.name): self._pools.get(pool_name(transfer.name)) for transfer in transfers}
        present = {
            name: [False] * found if pool is None else pool.present(salted[:found]) for name, pool in pools.items()
        }
        return hits.restorable(found, transfers, present, counted=self._anchor is not None)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[PoolName, list[bool]]:
        """Loads pages into several host pools."""
        return {transfer.name: self._transfer(transfer, PoolStore.load) for transfer in transfers}

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[PoolName, list[bool]]:
        """Stores pages of several host pools."""
        return {transfer.name: self._transfer(transfer, PoolStore.save) for transfer in transfers}

    def _transfer(
        self, transfer: PoolTransfer, run: Callable[[PoolStore, Sequence[str], Tensor, float], list[bool]]
    ) -> list[bool]:
        name = pool_name(transfer.name)
        keys = transfer.keys or []
        pool = self._pools.get(name)
        slots = transfer.host_indices
        if pool is None or slots is None or len(slots) != len(keys) * self._hosts[name].page_size:
            wrong = "no such pool" if pool is None else "other numbers of keys and of slots"
            self._complaints.note(f"a transfer of {name} failed", wrong)
            return [False] * len(keys)
        return run(pool, self._salted(keys), slots, self._patience(len(keys)))

    # One page at a time, through a tensor of its own: what SGLang uses without `interface_v1`.

    def exists(self, key: str) -> bool:
        """Whether the page of a key is there."""
        return self._anchor is not None and self._anchor.prefix(self._flat([key]), self._patience(1)) == 1

    def get(self, key: str, target_location: Tensor | None = None, target_sizes: object = None) -> Tensor | None:
        """Loads a page into a tensor, and returns it; `None` if it is not there."""
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self,
        keys: list[str],
        target_locations: Sequence[Tensor] = (),
        target_sizes: object = None,
    ) -> list[Tensor | None]:
        """Loads pages into tensors, of which those that were not there are `None` in the answer."""
        pool = self._anchor
        if pool is None or any(tensor is None or tensor.nbytes != pool.pages.page_bytes for tensor in target_locations):
            self._complaints.note("loading a page failed", "a tensor is no page of the pool")
            return [None] * len(keys)
        served = pool.load_into(self._flat(keys), list(target_locations), self._patience(len(keys)))
        return [tensor if done else None for tensor, done in zip(target_locations, served, strict=True)]

    def set(
        self,
        key: str,
        value: Tensor | None = None,
        target_location: Tensor | None = None,
        target_sizes: object = None,
    ) -> bool:
        """Stores a page out of a tensor."""
        return self.batch_set([key], [value if value is not None else target_location])

    def batch_set(
        self,
        keys: list[str],
        values: Sequence[Tensor] | None = None,
        target_locations: Sequence[Tensor] = (),
        target_sizes: object = None,
    ) -> bool:
        """Stores pages out of tensors; false if one was not."""
        pool = self._anchor
        tensors = values if values is not None else target_locations
        if pool is None or any(tensor is None or tensor.nbytes != pool.pages.page_bytes for tensor in tensors):
            self._complaints.note("storing a page failed", "a tensor is no page of the pool")
            return False
        pages = [tensor.contiguous() for tensor in tensors]
        return all(pool.save_from(self._flat(keys), pages, self._patience(len(keys))))

    # The whole.

    def clear(self) -> bool:
        """Nothing that was stored before is served any more.

        Raises `kvtier.Error` if that is true of this process alone: the next one might find it again. SGLang takes
        no other answer for a failure.
        """
        try:
            for pool in self._pools.values():
                pool.clear()
        except Error:
            self._salt = uuid.uuid4().hex
            raise
        return True

    def weights_changed(self) -> None:
        """Pages of the old weights are not served any more; those of the new ones not after the process's end."""
        self._salt = epoch()
        logger.info("kvtier: the weights were replaced: what was stored before is not served any more")

    def prefilled(self, start: int, end: int, seconds: float) -> None:
        """SGLang computed a prompt's tokens `start..end`."""
        anchor = self._anchor
        if anchor is not None and anchor.slow is not None:
            try:
                anchor.store.observed_prefill(start, end, seconds)
            except Error as error:
                self._complaints.note("learning what recomputing takes failed", error)

    def get_stats(self) -> StorageMetrics | None:
        """What was transferred since the last call."""
        return self._meter.take() if self._measure else None

    def stats(self) -> dict[str, dict[str, int]]:
        """Totals that kvtier keeps, for each pool."""
        return {name: pool.store.stats() for name, pool in self._pools.items()}

    def close(self) -> None:
        """Closes the stores. A second call does nothing."""
        pools, self._pools, self._anchor = self._pools, {}, None
        for name, pool in pools.items():
            try:
                logger.info("kvtier: pool %s closes: %s", name, pool.store.stats())
                pool.close()
            except Error as error:
                logger.warning("kvtier: pool %s did not close well: %s", name, error)

    def _slow(self) -> Slow | None:
        if not self._options.remotes and not self._options.weigh_nvme:
            return None
        near = {Presence.HOST} if self._options.weigh_nvme else {Presence.HOST, Presence.NVME}
        shares = bool(self._options.remotes) and not (self._rank.replicated and self._rank.tp[0] > 0)
        return Slow(near=frozenset(near), shares=shares)

    def _salted(self, keys: Sequence[str]) -> list[str]:
        salt = self._salt
        return [salt + key for key in keys] if salt else list(keys)

    def _flat(self, keys: Sequence[str]) -> list[str]:
        """Keys of flat pages. Their bytes are the runs one after the other, except in one layout."""
        salted = self._salted(keys)
        return [f"{key}/flat" for key in salted] if self.mem_pool_host.layout == "layer_first" else salted

    def _patience(self, pages: int) -> float:
        """Seconds that a call may take: those that SGLang's own policy waits for so many pages, if nothing is said."""
        if self._timeout is not None:
            return self._timeout
        return 1.0 + 0.25 * float(pages * self.mem_pool_host.page_size) / 1024


def _volume(pool: HostPool, pages: Pages) -> int:
    """Bytes of a whole host pool."""
    return int(pages.page_bytes * (pool.size // pool.page_size))
