"""Everything that comes from LMCache, whose names move between its versions. Known to work: 0.5.6."""

import functools
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import KeyEntry, KeyListPage, ObjectKey
from lmcache.v1.distributed.internal_api import L2AdapterListener, L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface

__all__ = [
    "AdapterUsage",
    "Bitmap",
    "KeyEntry",
    "KeyListPage",
    "L2AdapterInterface",
    "L2AdapterListener",
    "L2StoreResult",
    "ObjectKey",
    "address_of",
    "layout_bytes",
    "layout_of",
    "seed_usage",
]


def address_of(obj: object) -> int:
    """Where the bytes of a memory object are. Raises if that is not in host memory."""
    tensor = obj.raw_tensor  # type: ignore[attr-defined]
    if tensor is not None and tensor.device.type != "cpu":
        raise NotImplementedError(f"memory of device type {tensor.device.type}")
    return int(obj.data_ptr)  # type: ignore[attr-defined]


def layout_of(obj: object) -> str:
    """What the bytes of a memory object mean: its shapes, dtypes and format.

    LMCache's keys say nothing of it, and KV of another dtype may have the same size.
    """
    meta = obj.metadata  # type: ignore[attr-defined]
    return _layout(meta.fmt, tuple(meta.shapes or (meta.shape,)), tuple(meta.dtypes or (meta.dtype,)))


@functools.lru_cache(maxsize=1024)
def _layout(fmt: Any, shapes: tuple[Any, ...], dtypes: tuple[Any, ...]) -> str:  # noqa: ANN401
    parts = "+".join(f"{dtype}{list(shape)}" for shape, dtype in zip(shapes, dtypes, strict=True))
    return f"{fmt.name}:{parts}"


def layout_bytes(layout: object) -> int:
    """The size of an object of a `MemoryLayoutDesc`; 0 if it says nothing."""
    pairs = zip(layout.shapes, layout.dtypes, strict=True)  # type: ignore[attr-defined]
    return sum(shape.numel() * dtype.itemsize for shape, dtype in pairs)


def seed_usage(adapter: L2AdapterInterface, total: int, by_salt: dict[str, int]) -> None:
    """Lets the base class start to count from what is stored already, as LMCache's own adapters do.

    What it counts is not used here, but it complains when it comes out below zero.
    """
    with adapter._usage_lock:
        adapter._total_bytes_used = total
        adapter._bytes_by_cache_salt = dict(by_salt)
