"""Pages of SGLang's host pools as memory that kvtier copies from and to."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

from kvtier._kvtier import Runs
from kvtier.errors import Invalid
from kvtier.sglang._compat import HostPool, Tensor

Buffers: TypeAlias = Runs | list[Tensor]
"""What a `Store` takes: an item for each page."""


class Pages(Protocol):
    """How the pages of one host pool are addressed."""

    page_bytes: int
    sizes: tuple[int, ...]
    """Lengths of the runs of a page, in the order in which kvtier keeps them."""

    def of(self, slots: Tensor) -> tuple[Buffers, Callable[[int], None]]:
        """Buffers for the pages with these slots, a page's tokens one after the other.

        And what puts so many of them into the pool after a load, from the first.
        """


def _nothing(_count: int) -> None:
    pass


class RunPages:
    """Pages that are a few runs of memory each: nothing is copied on the way."""

    def __init__(self, pool: HostPool, sizes: tuple[int, ...]) -> None:
        self._pool = pool
        self.sizes = sizes
        self.page_bytes = sum(sizes)

    def of(self, slots: Tensor) -> tuple[Buffers, Callable[[int], None]]:
        """See `Pages`."""
        pointers, sizes = self._pool.get_page_buffer_meta(slots)
        # The buffer, which a pool that is destroyed lets go of.
        return Runs(pointers, sizes, keep=getattr(self._pool, "kv_buffer", self._pool)), _nothing


class FlatPages:
    """Pages that SGLang itself gathers into one tensor: one copy more."""

    def __init__(self, pool: HostPool, page_bytes: int) -> None:
        self._pool = pool
        self.sizes: tuple[int, ...] = (page_bytes,)
        self.page_bytes = page_bytes

    def of(self, slots: Tensor) -> tuple[Buffers, Callable[[int], None]]:
        """See `Pages`."""
        first = slots[:: self._pool.page_size].tolist()
        flat = [self._pool.get_data_page(slot, flat=True).contiguous() for slot in first]

        def scatter(count: int) -> None:
            for slot, page in zip(first[:count], flat[:count], strict=True):
                self._pool.set_from_flat_data_page(slot, page)

        return flat, scatter


def pages_of(pool: HostPool, name: str) -> Pages | None:
    """How to address a host pool; `None` for one that has no memory, as it only counts tokens for others."""
    try:
        runs = pool.get_page_buffer_meta(torch.arange(pool.page_size))
    except (NotImplementedError, ValueError) as refused:
        try:
            return FlatPages(pool, pool.get_data_page(0, flat=True).nbytes)
        except (NotImplementedError, ValueError):
            kind = type(pool).__name__
            raise Invalid(f"kvtier cannot address pages of the pool {name!r} ({kind}): {refused}") from None
    return None if runs is None else RunPages(pool, tuple(runs[1]))
