"""One store for one set of tensors: where the pages of a pool go."""

import logging
from collections.abc import Sequence
from typing import Any

from kvtier._kvtier import Keys, Layout, Pool, Store, Ticket
from kvtier.errors import Error
from kvtier.options import StoreOptions, describe
from kvtier.sglang._device_pools import PageTensors

_log = logging.getLogger(__name__)

_MOST_BY_LAYER = 256
"""Blocks that arrive layer by layer at most, and the part of host memory: see `Pool.onboard`."""
_TURNS_OF_HOST = 16


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
        self.slow = bool(options.remotes) or options.weigh_nvme
        self._options = options
        self._open = {
            "part": f"{directory}/{pages.name}",
            "share": share,
            "block_bytes": pages.page_bytes,
            "model": model,
            "layout": f"{layout};{describe(pages=pages.describe(), pool=pages.name)}",
            "tokens_per_block": tokens_per_page if self.slow else None,
        }
        self._streams = tuple(streams)
        self.pinned = 0
        """Blocks that pins hold."""
        self.store, self.pool = self._register(options)

    def _register(self, options: StoreOptions) -> tuple[Store, Pool]:
        store = options.open(**self._open)  # type: ignore[arg-type]
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
        try:
            pool = store.register(
                layout,
                [(tensor.data_ptr(), pages.span) for tensor in pages.tensors],
                num_blocks=pages.num_pages,
                arrangement=(None, None, pages.rows * pages.stride, pages.stride, pages.row_bytes),
                device=device.index if device.type == "cuda" else None,
                streams=self._streams if device.type == "cuda" else (),
            )
        except Error:
            store.close()
            raise
        slots = store.stats()["host_slots"]
        self.most_pinned = slots // 4
        by_layer = min(_MOST_BY_LAYER, slots // _TURNS_OF_HOST)
        # In smaller pieces the layers of a load would not arrive sooner than the load.
        self._turn = by_layer if by_layer >= 8 else None
        return store, pool

    def reopen(self, revision: str) -> None:
        """Goes on with the blocks of other weights.

        Raises `kvtier.Error`; the store is closed then, and every use of it raises `Closed`.
        """
        self.close()
        self.pinned = 0
        self.store, self.pool = self._register(StoreOptions(**{**_fields(self._options), "revision": revision}))

    def close(self) -> None:
        """Ends what is under way and closes the store."""
        self.pool.close()
        try:
            self.store.close(self._options.timeout)
        except Error as error:
            _log.warning("the store of %s was not closed well: %s", self.name, error)

    @property
    def room(self) -> int:
        """Blocks that can still be pinned."""
        return max(0, self.most_pinned - self.pinned)

    def offload(self, keys: Keys, blocks: list[int]) -> Ticket:
        """Raises `kvtier.Error` if nothing was started."""
        # Only chains go to remote stores.
        return self.pool.offload(keys, blocks, chained=bool(self._options.remotes), timeout=self._options.timeout)

    def onboard(self, keys: Keys, blocks: list[int]) -> list[Ticket]:
        """Starts a load, in turns of which each arrives layer by layer.

        Raises `kvtier.Error` if some were not started; those that were are over then.
        """
        turn = self._turn or len(blocks)
        tickets: list[Ticket] = []
        try:
            for first in range(0, len(blocks), turn):
                some = slice(first, first + turn)
                tickets.append(self.pool.onboard(keys[some], blocks[some], timeout=self._options.timeout))
        except Error:
            for ticket in tickets:
                ticket.cancel()
                ticket.wait()
            raise
        return tickets


def _fields(options: StoreOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}
