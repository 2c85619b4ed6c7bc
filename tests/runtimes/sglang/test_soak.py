"""Many requests, with cancels, flushes, restarts, failures and damage.

Through SGLang's tree and controller 200, or as many as KVTIER_SOAK says if that is more than one; 1 stands for 10,000.
Through a server 40, or 400.
"""

import contextlib
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import host_pools
import pytest
from damage import flip
from engine import Engine
from server import PAGE, Server, prompt

from footprint import Footprint

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
        "prefetch_threshold": 16,
        "revision": "1",
        # Fewer pages than the requests have, so that most of them come from the disk.
        "host": "1MiB",
        **more,
    }
    return given if path is None else given | {"path": str(path), "nvme": "256MiB", "keep_at_exit": True}


def test_requests_never_see_a_wrong_byte_and_leave_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    draw = random.Random(5)
    # Conversations: prompts that begin alike and go on differently.
    starts = [draw.choices(range(1000), k=host_pools.PAGE * draw.randrange(1, 8)) for _ in range(12)]
    prompts = [
        draw.choice(starts) + draw.choices(range(1000), k=host_pools.PAGE * draw.randrange(1, 8)) for _ in range(120)
    ]
    stored = computed = cancelled = restarts = flushes = flipped = 0
    seen: list[Footprint] = []
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
            gc.collect()
            if number >= REQUESTS // 5:
                seen.append(Footprint.of())
            if ASKED:
                print(
                    number + 1,
                    stored,
                    computed,
                    Footprint.of(),
                    engine.backend.stats()["kv"],
                    file=sys.stderr,
                    flush=True,
                )
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
        assert max(one.threads for one in seen) <= seen[0].threads
        assert max(one.descriptors for one in seen) - seen[0].descriptors <= 2
        # 64 MiB in thousands of requests and hundreds of stores is noise of the allocator, and no leak of pages.
        assert seen[-1].rss - seen[0].rss < 64 << 20


def test_a_server_answers_the_same_whatever_happens(detached: Server, tmp_path: Path) -> None:
    server = detached
    draw = random.Random(6)
    starts = [prompt(600 + at, PAGE * draw.randrange(1, 8)) for at in range(5)]
    prompts = [draw.choice(starts) + prompt(700 + at, draw.randrange(100, 700)) for at in range(20)]
    # Which part was computed together decides how sums are rounded, and nothing else decides an answer.
    answers: dict[tuple[int, int], tuple[int, ...]] = {}
    stored = aborted = 0
    before: Footprint | None = None
    server.attach(config(tmp_path, host="16MiB"))
    total = 400 if ASKED else 40
    for number in range(total):
        which = draw.randrange(len(prompts))
        if draw.random() < 0.15:
            name = f"aborted {number}"
            thread = threading.Thread(target=_abandoned, args=(server, prompts[which], name))
            thread.start()
            time.sleep(draw.random() * 0.1)
            server.abort(name)
            thread.join()
            aborted += 1
            continue
        reply = server.generate(prompts[which])
        assert answers.setdefault((which, reply.cached), reply.tokens) == reply.tokens
        stored += reply.storage
        if number % 8 == 7:
            server.flush()
        if number % 20 == 19:
            server.detach()
            server.flush()
            flip(tmp_path, every=1_000_000)
            server.attach(config(tmp_path, host="16MiB"))
            now = Footprint.of(*server.processes())
            before = before if number > total // 4 and before else now
            if ASKED:
                print(number + 1, stored, aborted, now, file=sys.stderr, flush=True)
    assert stored > 0
    assert before is not None
    after = Footprint.of(*server.processes())
    assert after.threads <= before.threads + 2
    assert after.descriptors <= before.descriptors + 4
    assert after.rss <= before.rss + (64 << 20)


def _abandoned(server: Server, tokens: list[int], name: str) -> None:
    # Over before it could be aborted, or an error or nothing as it was.
    with contextlib.suppress(Exception):
        server.generate(tokens, name=name)
