"""LMCache's own storage manager and controllers over the adapter, with restarts, crashes and quotas."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc

from driver import content, flip, key, spec
from manager import SHAPE, SIZE, get, manager, put, settle, the_adapter, until


def contents(keys):
    return {one: content(one, SIZE) for one in keys}


def test_what_l1_has_lost_comes_back_from_kvtier(tmp_path):
    managed = manager(spec(tmp_path))
    keys = [key(chunk) for chunk in range(16)]
    put(managed, contents(keys))
    managed.clear()
    read, from_l2 = get(managed, [[*keys, key(99)]])
    assert read == [[content(one, SIZE) for one in keys] + [None]]
    assert from_l2 == 16
    assert get(managed, [keys])[0] == [[content(one, SIZE) for one in keys]]
    status = the_adapter(managed).report_status()
    assert status["locked_objects"] == status["pins"] == 0
    managed.close()


def test_ranks_salts_and_groups_side_by_side(tmp_path):
    layouts = {
        0: MemoryLayoutDesc([SHAPE], [torch.bfloat16]),
        1: MemoryLayoutDesc([SHAPE[1:]], [torch.bfloat16]),
    }
    line = spec(tmp_path)
    managed = manager(line)
    rows = [[key(chunk, rank=rank, group=group) for chunk in range(4)] for group in (0, 1) for rank in (1, 2)]
    missed, _ = get(managed, rows, layouts=layouts)
    assert missed == [[None] * 4] * 4
    for row in rows:
        size = SIZE if row[0].object_group_id == 0 else SIZE // 2
        put(
            managed,
            {one: content(one, size) for one in row},
            layouts[row[0].object_group_id],
        )
    settle(managed)
    for again in (False, True):
        if again:
            managed.close()
            managed = manager(line)
        managed.clear()
        read, from_l2 = get(managed, rows, layouts=layouts)
        assert from_l2 == 16
        assert read == [[content(one, SIZE if one.object_group_id == 0 else SIZE // 2) for one in row] for row in rows]
        assert get(managed, [[key(chunk, salt="other", rank=1) for chunk in range(4)]])[0] == [[None] * 4]
    managed.close()


def test_a_flipped_bit_is_recomputed_and_stored_again(tmp_path):
    line = spec(tmp_path)
    managed = manager(line)
    keys = [key(chunk) for chunk in range(6)]
    put(managed, contents(keys))
    settle(managed)
    managed.close()
    assert flip(tmp_path, content(keys[3], SIZE)[:4096]) == 1
    managed = manager(line)
    read, _ = get(managed, [keys])
    # A prefix ends where a chunk is missing.
    assert read == [[content(one, SIZE) for one in keys[:3]] + [None] * 3]
    # The server computes it, and L1 gives it to kvtier again.
    put(managed, contents([keys[3]]))
    managed.clear()
    assert get(managed, [keys])[0] == [[content(one, SIZE) for one in keys]]
    managed.close()


# Acknowledges every batch that kvtier has stored, and those that are on NVMe; then it is killed.
VICTIM = """
import sys
from driver import content, key
from manager import SIZE, manager, put, settle
import json
managed = manager(json.loads(sys.argv[1]))
for batch in range(10_000):
    keys = [key(batch * 8 + at, salt="ab"[at % 2]) for at in range(8)]
    put(managed, {one: content(one, SIZE) for one in keys})
    managed.clear()
    if batch % 2:
        settle(managed)
    print(batch, int(batch % 2), flush=True)
"""


@pytest.mark.parametrize("batches", [1, 2, 7, 12])
def test_a_kill_loses_nothing_that_is_on_nvme(tmp_path, batches):
    line = spec(tmp_path, nvme="128MiB")
    victim = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", VICTIM, json.dumps(line)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(__file__),
    )
    last = settled = -1
    while last < batches - 1:
        said = victim.stdout.readline().split()
        assert said, "the victim died by itself"
        last = int(said[0])
        settled = last if said[1] == "1" else settled
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    managed = manager(line)
    # One after the other: what is not there must not hide what is.
    for chunk in range((last + 3) * 8):
        one = key(chunk, salt="ab"[chunk % 2])
        ((read,),), _ = get(managed, [[one]])
        assert read in (None, content(one, SIZE))
        if chunk < (settled + 1) * 8:
            assert read is not None, "it was on NVMe"
        assert get(managed, [[key(chunk, salt="c")]])[0] == [[None]]
    usage = the_adapter(managed).get_usage()
    assert usage.total_bytes_used >= (settled + 1) * 8 * SIZE
    assert set(usage.bytes_by_cache_salt) <= {"a", "b"}
    managed.close()


def test_quotas_are_kept_by_salt(tmp_path):
    line = spec(tmp_path, nvme="128MiB")
    managed = manager(line, eviction_policy="IsolatedLRU", trigger_watermark=1.0, eviction_ratio=0.5)
    managed.quota_manager.set_quota("rich", 100 << 20)
    managed.quota_manager.set_quota("poor", 6 * SIZE)
    rich = [key(chunk, salt="rich") for chunk in range(10)]
    poor = [key(chunk, salt="poor") for chunk in range(10)]
    put(managed, contents(rich + poor))
    adapter = the_adapter(managed)
    until(
        lambda: adapter.get_usage().bytes_by_cache_salt["poor"] < 6 * SIZE,
        "eviction does not keep the quota",
    )
    assert adapter.get_usage().bytes_by_cache_salt["rich"] == 10 * SIZE
    settle(managed)
    kept = {one for one, _ in adapter._inventory.all()}
    managed.close()
    # After a restart too: usage is known, and what can be evicted. Nobody has a quota now, except the rich.
    managed = manager(line, eviction_policy="IsolatedLRU", trigger_watermark=1.0, eviction_ratio=0.5)
    managed.quota_manager.set_quota("rich", 100 << 20)
    until(
        lambda: "poor" not in the_adapter(managed).get_usage().bytes_by_cache_salt,
        "a salt without quota stays",
    )
    assert the_adapter(managed).get_usage().bytes_by_cache_salt["rich"] == 10 * SIZE
    assert {one for one in kept if one.cache_salt == "rich"} == set(rich)
    assert get(managed, [rich])[0] == [[content(one, SIZE) for one in rich]]
    managed.close()


def test_eviction_by_usage_in_all(tmp_path):
    managed = manager(
        spec(tmp_path, nvme="32MiB"),
        eviction_policy="LRU",
        trigger_watermark=0.3,
        eviction_ratio=0.5,
    )
    keys = [key(chunk) for chunk in range(100)]
    put(managed, contents(keys))
    adapter = the_adapter(managed)
    until(
        lambda: adapter.get_usage().usage_fraction < 0.3,
        "eviction does not free anything",
    )
    managed.clear()
    kept = {one for one, _ in adapter._inventory.all()}
    for one in keys:
        ((read,),), _ = get(managed, [[one]])
        assert read == (content(one, SIZE) if one in kept else None)
    managed.close()


def test_serialised_objects(tmp_path):
    """LMCache's fp8 serialiser: what arrives is half as large, and of a shape that look-ups do not describe."""
    line = {**spec(tmp_path), "serde": {"type": "fp8"}}
    managed = manager(line)
    one = key(1)
    numbers = torch.arange(SHAPE.numel(), dtype=torch.float32).remainder(16).to(torch.bfloat16)
    put_through_wrapper(managed, one, numbers)
    managed.clear()
    ((read,),), from_l2 = get(managed, [[one]])
    assert from_l2 == 1
    assert torch.equal(torch.frombuffer(bytearray(read), dtype=torch.bfloat16), numbers)
    managed.close()


def put_through_wrapper(managed, one, numbers):
    objects = managed.reserve_write([one], MemoryLayoutDesc([SHAPE], [torch.bfloat16]))
    objects[one].tensor.view(-1).copy_(numbers)
    managed.finish_write([one])
    until(
        lambda: the_adapter(managed).get_usage().total_bytes_used > 0,
        "it is not stored",
    )
    until(
        lambda: not managed.report_status()["store_controller"]["in_flight_task_count"],
        "a store hangs",
    )
