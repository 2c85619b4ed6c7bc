"""Many requests through tree, controller and backend, with cancels, flushes, restarts, failures and damage.

200 requests, or as many as KVTIER_SOAK says if that is more than one; 1 stands for 10,000.
"""

import gc
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import flip
from engine import Engine
from host_pools import PAGE

ASKED = int(os.environ.get("KVTIER_SOAK", "0"))
REQUESTS = {0: 200, 1: 10_000}.get(ASKED, ASKED)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    engine.close()


def config(path: Path | None, **more: object) -> dict[str, object]:
    given: dict[str, object] = {
        "backend_name": "kvtier",
        "module_path": "kvtier.sglang",
        "class_name": "KvtierStorage",
        "interface_v1": 1,
        "prefetch_threshold": PAGE,
        "revision": "1",
        # Fewer pages than the requests have, so that most of them come from the disk.
        "host": "1MiB",
        **more,
    }
    return given if path is None else given | {"path": str(path), "nvme": "512MiB", "keep_at_exit": True}


def usage() -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return {
        "rss_kib": int(status.split("VmRSS:")[1].split()[0]),
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def test_requests_never_see_a_wrong_byte_and_leave_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    draw = random.Random(5)
    # Conversations: prompts that begin alike and go on differently.
    starts = [draw.choices(range(1000), k=PAGE * draw.randrange(1, 8)) for _ in range(12)]
    prompts = [draw.choice(starts) + draw.choices(range(1000), k=PAGE * draw.randrange(1, 8)) for _ in range(120)]
    stored = computed = cancelled = restarts = flushes = flipped = 0
    seen: list[dict[str, int]] = []
    engine.attach(config(tmp_path))
    for number in range(REQUESTS):
        cancel = draw.random() < 0.1
        hit, missed = engine.request(draw.choice(prompts), cancel=cancel)
        stored, computed, cancelled = stored + hit, computed + missed, cancelled + cancel
        if number % 7 == 6:
            engine.settle()
            engine.flush()
            flushes += 1
        if number % 100 == 99:
            engine.settle()
            engine.detach()
            engine.flush()
            restarts += 1
            if restarts % 3 == 0:
                flipped += flip(tmp_path, every=300_000)
            # Every other life has a failure in twenty calls; every tenth is of another revision.
            revision = "2" if restarts % 10 == 0 else "1"
            engine.attach(config(tmp_path, revision=revision), failures=0.05 * (restarts % 2))
            # The first lives fill caches of Python, torch and the allocator.
            if number >= REQUESTS // 5:
                seen.append(usage())
            if ASKED:
                print(number + 1, stored, computed, usage(), engine.backend.stats()["kv"], file=sys.stderr, flush=True)
    engine.settle()
    stats = engine.backend.stats()["kv"]
    engine.detach()
    print(
        f"\n{REQUESTS} requests: {stored} tokens from storage, {computed} computed, {cancelled} cancelled, "
        f"{flushes} flushes, {restarts} restarts, {flipped} bits flipped; first {seen[:1]}, last {seen[-1:]}; {stats}",
        file=sys.stderr,
    )
    assert stored > 0
    assert stats["under_way"] == 0
    assert stats["host_used"] <= stats["host_slots"]
    if seen:
        assert {one["threads"] for one in seen} == {seen[0]["threads"]}
        assert max(one["descriptors"] for one in seen) - seen[0]["descriptors"] <= 2
        # 64 MiB in thousands of requests and hundreds of stores is noise of the allocator, and no leak of pages.
        assert seen[-1]["rss_kib"] - seen[0]["rss_kib"] < 64 << 10
