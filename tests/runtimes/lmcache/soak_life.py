"""One process of the soak: requests, faults and restarts of the storage manager. See test_soak.py.

Prints a line of JSON for each storage manager that it has closed. The last line is about one that it kills itself over.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import kvtier
import torch
from footprint import Footprint
from kvtier.options import StoreOptions
from lmcache.v1.distributed.api import MemoryLayoutDesc

from driver import content, key, segments, spec
from manager import get, manager, the_adapter, until

SHAPES = {0: torch.Size([32, 1024]), 1: torch.Size([8, 1024])}
LAYOUTS = {group: MemoryLayoutDesc([shape], [torch.bfloat16]) for group, shape in SHAPES.items()}
CONVERSATIONS = 24
L1 = 4 << 20
LONGEST = 8


class Flaky:
    """A store that refuses one call in a hundred, and starts one load in a hundred late."""

    def __init__(self, real, dice):
        self._real, self._dice, self.refused, self.late = real, dice, 0, 0

    def __getattr__(self, name):
        real = getattr(self._real, name)
        if name not in ("get", "put", "pin", "exists", "remove", "flush"):
            return real

        def call(*args, **more):
            if self._dice.random() < 0.01:
                self.refused += 1
                raise kvtier.Busy("by the dice")
            if name == "get" and self._dice.random() < 0.01:
                self.late += 1
                return Late(lambda: real(*args, **more))
            return real(*args, **more)

        return call


class Late:
    """A ticket of an operation that is started a little later."""

    def __init__(self, start):
        self._start, self._begun = start, threading.Event()
        threading.Timer(0.02, self._begin).start()

    def _begin(self):
        self._ticket = self._start()
        self._begun.set()

    def statuses(self):
        self._begun.wait()
        return self._ticket.statuses()

    def release(self):
        self._begun.wait()
        self._ticket.release()


def row(conversation, group, count, salt):
    return [key(conversation * LONGEST + at, group=group, salt=salt) for at in range(count)]


def size_of(one):
    return SHAPES[one.object_group_id].numel() * 2


def flip_somewhere(path, dice):
    file = dice.choice(segments(path))
    with file.open("r+b") as opened:
        at = dice.randrange(file.stat().st_size)
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1 << dice.randrange(8)]))


def request(managed, dice, counts):
    """A prompt: what of it is there is read, compared, and the rest is computed and stored."""
    conversation, count = dice.randrange(CONVERSATIONS), dice.randint(1, LONGEST)
    salt = dice.choice(["", "a", "b"])
    rows = [row(conversation, group, count, salt) for group in SHAPES]
    read, from_l2 = get(managed, rows, layouts=LAYOUTS)
    counts["hits"] += from_l2
    for keys, contents in zip(rows, read, strict=True):
        missing = {}
        for one, found in zip(keys, contents, strict=True):
            if found is None:
                missing[one] = content(one, size_of(one))
            elif found != content(one, size_of(one)):
                counts["wrong"] += 1
        objects = managed.reserve_write(list(missing), LAYOUTS[keys[0].object_group_id])
        for one, obj in objects.items():
            memoryview(obj.byte_array).cast("B")[:] = missing[one]
        managed.finish_write(list(objects))
        counts["stored"] += len(objects)


def idle(managed):
    """Whether LMCache's controllers have nothing to do."""
    status = managed.report_status()
    return not (
        status["store_controller"]["pending_keys_count"] + status["store_controller"]["in_flight_task_count"]
    ) and not any(the_adapter(managed).report_status()["tasks_under_way"].values())


def of_this_process():
    gc.collect()
    found = Footprint.of()
    return {"rss_mib": found.rss / (1 << 20), "threads": found.threads, "descriptors": found.descriptors}


def main():
    path, seed, requests, life, kill = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    dice = random.Random(seed)
    doubles = []
    real_open = StoreOptions.open

    def open_flaky(self, **more):
        doubles.append(Flaky(real_open(self, **more), dice))
        return doubles[-1]

    StoreOptions.open = open_flaky
    line = spec(path, host="6MiB", nvme="24MiB")
    done = 0
    while done < requests:
        doubles.clear()
        counts = dict.fromkeys(("hits", "stored", "wrong", "flips", "deletions", "abandoned"), 0)
        eviction = {"eviction_policy": "LRU", "trigger_watermark": 0.6, "eviction_ratio": 0.3}
        managed = manager(line, l1_bytes=L1, **eviction)
        adapter = the_adapter(managed)
        for _ in range(life):
            request(managed, dice, counts)
            done += 1
            chance = dice.random()
            if chance < 0.02:
                flip_somewhere(path, dice)
                counts["flips"] += 1
            elif chance < 0.06:
                some = [one for one, _ in adapter._inventory.all()]
                adapter.delete(dice.sample(some, min(len(some), 8)))
                counts["deletions"] += 1
            elif chance < 0.1:
                # Somebody who looks up, begins to load, and is never heard of again.
                keys = row(dice.randrange(CONVERSATIONS), 0, LONGEST, "")
                task = adapter.submit_lookup_and_lock_task(keys, {})
                adapter.submit_unlock(keys)
                counts["abandoned"] += task > 0
            if dice.random() < 0.9:
                until(lambda managed=managed: idle(managed), "something is never done")
            # What has not been stored yet is lost with it: LMCache's memory is full at times, too.
            managed.clear()
        if kill and done >= requests:
            # Stores are under way, and what they wrote may not be on the disk.
            request(managed, dice, counts)
            print(json.dumps({"done": done, **counts, "killed": True}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        until(lambda managed=managed: idle(managed), "something is never done")
        status = adapter.report_status()
        faults = {"refused": sum(one.refused for one in doubles), "late": sum(one.late for one in doubles)}
        counts["complaints"] = sum(status["complaints"].values())
        held = {name: status[name] for name in ("objects", "locked_objects", "pins")}
        usage = adapter.get_usage()
        assert usage.total_bytes_used == sum(usage.bytes_by_cache_salt.values())
        used = {size: [stats[name] for name in ("host_used", "nvme_used")] for size, stats in status["stores"].items()}
        managed.close()
        print(json.dumps({"done": done, **counts, **faults, **held, "used": used, **of_this_process()}), flush=True)
    print(json.dumps({"end": True}), flush=True)


if __name__ == "__main__":
    main()
