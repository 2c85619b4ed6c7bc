"""The adapter as LMCache makes it, and its tasks awaited the way LMCache's controllers await them."""

import argparse
import json
import os
import random

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "WARNING")

import torch
from lmcache.cli.commands.bench.l2_adapter_bench.data import wait_eventfd
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import (
    MemoryFormat,
    MemoryObjMetadata,
    TensorMemoryObj,
)

MIB = 1 << 20
CHUNK = 256 << 10
# Seconds. Not what is expected, but what is certainly a hang.
HANG = 60


def spec(path=None, host="16MiB", nvme="64MiB", **more):
    """The configuration's line."""
    params = {
        "host": host,
        **({} if path is None else {"path": str(path), "nvme": nvme}),
        **more,
    }
    return {
        "type": "plugin",
        "module_path": "kvtier.lmcache",
        "class_name": "KvtierAdapter",
        "adapter_params": params,
    }


def parsed(line):
    """Read by LMCache."""
    return parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(line)])).adapters[0]


def adapter(*args, **more):
    """Made by LMCache's factory."""
    return create_l2_adapter(parsed(spec(*args, **more)), l1_memory_desc=None)


def key(chunk, salt="", model="model", rank=0, group=0):
    return ObjectKey(
        chunk_hash=chunk.to_bytes(32, "big"),
        model_name=model,
        kv_rank=rank,
        object_group_id=group,
        cache_salt=salt,
    )


def content(seed, size=CHUNK):
    return random.Random(repr(seed)).randbytes(size)


class Page:
    """Memory of LMCache for one object."""

    def __init__(self, data=None, size=CHUNK, dtype=torch.uint8):
        size = size if data is None else len(data)
        self.raw = torch.full((size,), 0xEE, dtype=torch.uint8)
        if data is not None:
            self.raw.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        shape = torch.Size([size // dtype.itemsize])
        meta = MemoryObjMetadata(
            shape=shape,
            dtype=dtype,
            address=0,
            phy_size=size,
            ref_count=1,
            fmt=MemoryFormat.KV_2LTD,
        )
        self.obj = TensorMemoryObj(raw_data=self.raw, metadata=meta, parent_allocator=None)

    @property
    def bytes(self):
        return self.raw.numpy().tobytes()

    @property
    def untouched(self):
        return bool((self.raw == 0xEE).all())


def wait_store(tested, task):
    """The result of one store, and of none but this."""
    done = {}
    while task not in done:
        assert wait_eventfd(tested.get_store_event_fd(), timeout=HANG), "the store hangs"
        done.update(tested.pop_completed_store_tasks())
    assert list(done) == [task]
    return done[task]


def store(tested, keys, pages):
    return wait_store(tested, tested.submit_store_task(keys, [page.obj for page in pages]))


def bits(bitmap, count):
    return [bitmap.test(at) for at in range(count)]


def wait_lookup(tested, task, count):
    while (found := tested.query_lookup_and_lock_result(task)) is None:
        assert wait_eventfd(tested.get_lookup_and_lock_event_fd(), timeout=HANG), "the look-up hangs"
    assert tested.query_lookup_and_lock_result(task) is None, "it answers once"
    return bits(found, count)


def lookup(tested, keys, layouts=None):
    return wait_lookup(tested, tested.submit_lookup_and_lock_task(keys, layouts or {}), len(keys))


def wait_load(tested, task, count):
    while (loaded := tested.query_load_result(task)) is None:
        assert wait_eventfd(tested.get_load_event_fd(), timeout=HANG), "the load hangs"
    assert tested.query_load_result(task) is None, "it answers once"
    return bits(loaded, count)


def load(tested, keys, pages):
    return wait_load(tested, tested.submit_load_task(keys, [page.obj for page in pages]), len(keys))


def settle(tested):
    """Until everything stored is on NVMe, too."""
    while tested.report_status()["tasks_under_way"]["store"]:
        assert wait_eventfd(tested.get_store_event_fd(), timeout=HANG), "writing to NVMe hangs"
        assert not tested.pop_completed_store_tasks()


def segments(path):
    """The files of the NVMe logs that hold blocks."""
    return [file for file in sorted(path.rglob("log/*")) if file.is_file() and file.stat().st_size >= MIB]


def flip(path, needle):
    """Flips one bit in the middle of a block on NVMe. Returns how many places had it."""
    places = 0
    for file in segments(path):
        data = file.read_bytes()
        at = data.find(needle)
        while at >= 0:
            places += 1
            with file.open("r+b") as opened:
                opened.seek(at + len(needle) // 2)
                opened.write(bytes([data[at + len(needle) // 2] ^ 0x10]))
            at = data.find(needle, at + 1)
    return places
