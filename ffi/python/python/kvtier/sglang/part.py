"""One store for one set of tensors: where the pages of a pool go."""

import logging
from collections.abc import Sequence

from kvtier._kvtier import Keys, Layout, Pool, Ticket
from kvtier.errors import Error
from kvtier.options import StoreOptions
from kvtier.sglang.device_pools import PageTensors

_log = logging.getLogger("kvtier.sglang")

_MOST_BY_LAYER = 256
"""Blocks that arrive layer by layer at most, and the part of host memory: see `Pool.onboard`."""
_TURNS_OF_HOST = 16
_LEAST_BY_LAYER = 8

_CLOSING = 60.0
"""Seconds for what `keep_at_exit` still writes."""


class Part:
    """The pages of `pages.tensors` in a store of their own."""

    def __init__(
        self,
        pages: PageTensors,
        options: StoreOptions,
        *,
        directory: str,
        share: float,
        model: str,
        layout: str,
        streams: Sequence[int],
        tokens_per_page: int,
    ) -> None:
        self.name = pages.name
        self.pages = pages
        self.salt = ""
        """Part of all keys: another one makes all that is stored unknown."""
        self.pinned = 0
        """Blocks that pins hold."""
        self.slow = bool(options.remotes) or options.weigh_nvme
        """Whether there are tiers that must be asked whether loading from them is worth it."""
        self._remotes = bool(options.remotes)
        self._timeout = options.timeout
        self.store = options.open(
            part=directory,
            share=share,
            block_bytes=pages.page_bytes,
            model=model,
            layout=layout,
            tokens_per_block=tokens_per_page if self.slow else None,
        )
        try:
            self.pool = self._register(streams)
        except Error:
            self.store.close()
            raise
        slots = self.store.stats()["host_slots"]
        self.most_pinned = slots // 4
        by_layer = min(_MOST_BY_LAYER, slots // _TURNS_OF_HOST)
        # In smaller pieces the layers of a load would not arrive sooner than the load.
        self._turn = by_layer if by_layer >= _LEAST_BY_LAYER else None

    def _register(self, streams: Sequence[int]) -> Pool:
        pages = self.pages
        device = pages.tensors[0].device
        # A row of bytes, whatever they mean: what kvtier must know is where they are.
        layout = Layout(
            layers=len(pages.tensors),
            kv_heads=0,
            head_dim=pages.row_bytes,
            dtype="fp8_e4m3",
            tokens_per_block=pages.rows,
        )
        return self.store.register(
            layout,
            [(tensor.data_ptr(), pages.span) for tensor in pages.tensors],
            num_blocks=pages.num_pages,
            arrangement=(None, None, pages.rows * pages.stride, pages.stride, pages.row_bytes),
            device=device.index if device.type == "cuda" else None,
            streams=streams,
        )

    def keys(self, keys: Sequence[str]) -> Keys:
        """Binds SGLang's hashes to what is stored now."""
        salt = self.salt
        return self.store.keys([salt + key for key in keys] if salt else list(keys))

    def close(self) -> None:
        """Ends what is under way and closes the store."""
        self.pool.close()
        try:
            self.store.close(_CLOSING)
        except Error as error:
            _log.warning("kvtier: the store of %s did not close well: %s", self.name, error)

    @property
    def room(self) -> int:
        """Blocks that can still be pinned."""
        return max(0, self.most_pinned - self.pinned)

    def offload(self, keys: Sequence[str], pages: list[int]) -> Ticket:
        """Starts to store pages of the device's pool. Raises `kvtier.Error` if nothing was started."""
        # Only chains go to remote stores.
        return self.pool.offload(self.keys(keys), pages, chained=self._remotes, timeout=self._timeout)

    def onboard(self, keys: Sequence[str], pages: list[int]) -> list[Ticket]:
        """Starts to load pages, in turns of which each arrives layer by layer.

        Raises `kvtier.Error` if some were not started; those that were are over then.
        """
        bound = self.keys(keys)
        turn = self._turn or max(1, len(pages))
        tickets: list[Ticket] = []
        try:
            for first in range(0, len(pages), turn):
                some = slice(first, first + turn)
                tickets.append(self.pool.onboard(bound[some], pages[some], timeout=self._timeout))
        except Error:
            for ticket in tickets:
                ticket.cancel()
                ticket.wait()
            raise
        return tickets
