"""LMCache's storage manager over the adapter: what its multi-process server is made of."""

import time

import torch
from lmcache.v1.distributed.api import (
    GroupedObjectKeys,
    MemoryLayoutDesc,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import (
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
    StorageManagerConfig,
)
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig
from lmcache.v1.distributed.storage_manager import StorageManager

from driver import HANG, parsed

# Of one chunk in one object group: bfloat16, K and V, layers, tokens, width.
SHAPE = torch.Size([2, 4, 64, 128])
LAYOUT = MemoryLayoutDesc(shapes=[SHAPE], dtypes=[torch.bfloat16])
SIZE = SHAPE.numel() * 2


def manager(line, l1_bytes=32 << 20, **eviction):
    """With one adapter, and an L1 of so many bytes that is emptied by `clear` alone."""
    config = parsed({**line, **({"eviction": eviction} if eviction else {})})
    return StorageManager(
        StorageManagerConfig(
            l1_manager_config=L1ManagerConfig(
                memory_config=L1MemoryManagerConfig(size_in_bytes=l1_bytes, use_lazy=False, shm_name="")
            ),
            eviction_config=EvictionConfig(eviction_policy="noop"),
            l2_adapter_config=L2AdaptersConfig([config]),
        )
    )


def the_adapter(managed):
    return managed.l2_adapters()[0][1]


def until(what, said):
    """Polls; the tests say nothing about how long it takes."""
    end = time.monotonic() + HANG
    while not what():
        assert time.monotonic() < end, said
        time.sleep(0.005)


def put(managed, contents, layout=LAYOUT):
    """Writes objects to L1, from where LMCache stores them by itself, and waits until kvtier has them."""
    objects = managed.reserve_write(list(contents), layout)
    assert set(objects) == set(contents)
    for key, obj in objects.items():
        memoryview(obj.byte_array).cast("B")[:] = contents[key]
    before = {key for key, _ in the_adapter(managed)._inventory.all()}
    managed.finish_write(list(contents))
    until(
        lambda: set(contents) <= before | {key for key, _ in the_adapter(managed)._inventory.all()},
        "LMCache's store controller did not get them stored",
    )
    # It holds them locked in L1 until it has heard.
    until(
        lambda: not managed.report_status()["store_controller"]["in_flight_task_count"],
        "a store hangs",
    )


def settle(managed):
    """Until all of it is on NVMe."""
    until(
        lambda: not the_adapter(managed).report_status()["tasks_under_way"]["store"],
        "writing to NVMe hangs",
    )


def get(managed, rows, window=-1, layouts=None):
    """Prefetches rows of keys, and reads what came. Returns for each row the bytes, or `None`."""
    groups = [
        GroupedObjectKeys(
            keys=row,
            object_group_id=row[0].object_group_id,
            layout_desc=(layouts or {}).get(row[0].object_group_id, LAYOUT),
            sliding_window_size=window,
        )
        for row in rows
    ]
    handle = managed.submit_prefetch_task(PrefetchTaskSpec(key_groups=groups))
    assert managed.wait_prefetch_status(handle, HANG), "the prefetch hangs"
    result = managed.query_prefetch_status(handle)
    read = []
    for row, hits in zip(rows, result.hit_cells, strict=True):
        keys = [key for at, key in enumerate(row) if hits.test(at)]
        contents = dict.fromkeys(row)
        if keys:
            with managed.read_prefetched_results(keys) as objects:
                for key, obj in zip(keys, objects, strict=True):
                    contents[key] = memoryview(obj.byte_array).cast("B").tobytes()
            managed.finish_read_prefetched(keys)
        read.append([contents[key] for key in row])
    return read, result.l2_hit_count
