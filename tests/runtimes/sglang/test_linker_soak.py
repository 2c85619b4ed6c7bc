"""Many requests through SGLang's tree and the linker, with cancels, restarts, new weights and damage.

300 requests of each kind of pools, or as many as KVTIER_SOAK says if that is more than one; 1 stands for 10,000. Then
as many go to a real server, too.
"""

import contextlib
import gc
import os
import random
import threading
from pathlib import Path

import pytest
from damage import flip
from linked_tree import LinkedTree
from pools import PAGE
from server import Failed, Server, prompt
from test_linker import flags, stats

from footprint import Footprint

ASKED = int(os.environ.get("KVTIER_SOAK", "0"))
REQUESTS = {0: 300, 1: 10_000}.get(ASKED, ASKED)


def live(tree: LinkedTree, chance: random.Random, prompts: list[list[int]], requests: int) -> None:
    """One life of an engine."""
    clock = [0.0]
    tree.linker._holds._now = lambda: clock[0]
    for _ in range(requests):
        clock[0] += chance.choice([0.1, 0.1, 0.1, 20.0])
        tree.request(chance.choice(prompts), leaves=chance.random() < 0.05, cancelled=chance.random() < 0.1)
        if chance.random() < 0.05:
            tree.settle()
            tree.flush()
            assert set(tree.linker.stats()["pinned"].values()) == {0}
        if chance.random() < 0.002:
            tree.settle()
            tree.flush()
            tree.linker.weights_changed()
            tree.weights += 1
    tree.settle()
    tree.flush()
    counted = tree.linker.stats()
    assert counted["failed_loads"] == counted["errors"] == counted["holds"] == 0
    for part, store in counted["stores"].items():
        assert counted["pinned"][part] == store["under_way"] == 0
        assert store["host_used"] <= store["host_slots"]


@pytest.mark.parametrize("kind", ["heads", "window"])
def test_no_wrong_byte_and_nothing_that_grows(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    chance = random.Random(kind)
    starts = [[chance.randrange(1000) for _ in range(PAGE * chance.randint(1, 8))] for _ in range(8)]
    prompts = [chance.choice(starts) + [chance.randrange(1000) for _ in range(PAGE * 6)] for _ in range(60)]
    # Fewer pages than the prompts have: most come from the disk.
    config = {"host": "1MiB" if kind == "heads" else "2MiB", "path": str(tmp_path), "nvme": "128MiB"}
    lives = max(3, REQUESTS // 500)
    tokens, refused, footprints = 0, 0, []
    for number in range(lives):
        tree = LinkedTree()
        tree.start(kind, {**config, "keep_at_exit": chance.random() < 0.7})
        live(tree, chance, prompts, REQUESTS // lives)
        tokens += tree.linker_tokens
        refused += sum(store["refused_loads"] for store in tree.linker.stats()["stores"].values())
        gc.collect()
        footprints.append(Footprint.of())
        tree.close()
        if number % 3 == 1:
            assert flip(tmp_path, every=100_000)
    with capsys.disabled():
        print(f"\n{kind}: {REQUESTS} requests in {lives} lives, {tokens} tokens loaded, {refused} pages refused")
        print(*(f"  {at}: {footprint}\n" for at, footprint in enumerate(footprints)), end="")
    assert tokens > REQUESTS
    assert refused > 0
    assert footprints[-1].threads <= footprints[1].threads
    assert footprints[-1].descriptors <= footprints[1].descriptors
    # In the second half of thousands of requests: what the allocator keeps has been reached by then.
    assert footprints[-1].rss < footprints[lives // 2].rss + (32 << 20)


def in_a_server(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chance = random.Random(1)
    prompts = [prompt(1000 + number, chance.randint(65, 400)) for number in range(60)]
    known: dict[int, tuple[int, ...]] = {}
    config = {"host": "4MiB", "path": str(tmp_path / "kv"), "nvme": "256MiB", "timeout": 5.0}
    done, hits, aborted, report, lives = 0, 0, 0, [], 5
    for life in range(lives):
        with Server(tmp_path / f"log{life}", flags(**config)) as server:
            pids = server.processes()
            early: dict[int, Footprint] = {}
            for turn in range(REQUESTS // lives):
                number = chance.randrange(len(prompts))
                done += 1
                if chance.random() < 0.1:
                    rid, wait = f"r{done}", chance.random() / 20
                    timer = threading.Timer(wait, server.call, ("POST", "/abort_request", {"rid": rid}))
                    timer.start()
                    body = {
                        "rid": rid,
                        "input_ids": prompts[number],
                        "sampling_params": {"max_new_tokens": 32, "temperature": 0, "ignore_eos": True},
                    }
                    with contextlib.suppress(Failed):
                        server.call("POST", "/generate", body)
                    timer.join()
                    aborted += 1
                    continue
                reply = server.generate(prompts[number], new=2)
                assert known.setdefault(number, reply.tokens) == reply.tokens
                hits += reply.host
                if chance.random() < 0.02:
                    server.flush()
                if turn == REQUESTS // lives // 2:
                    early = {pid: Footprint.of(pid) for pid in pids}
            (counted,) = stats(server)
            late = {pid: Footprint.of(pid) for pid in pids}
            report.append((life, counted))
            for pid in pids:
                report.append((life, early[pid], late[pid]))
                assert late[pid].threads <= early[pid].threads + 2
                assert late[pid].descriptors <= early[pid].descriptors + 8
                assert late[pid].rss < early[pid].rss + (64 << 20)
            assert counted["pinned"]["kv"] == counted["holds"] == counted["failed_loads"] == counted["errors"] == 0
            server.stop(chance.choice([9, 15]))
        flip(tmp_path / "kv", every=3_000_000)
    with capsys.disabled():
        print(f"\nserver: {done} requests, {aborted} of them aborted, {hits} tokens loaded")
        for line in report:
            print(" ", *line)
    assert hits > 0


if ASKED:
    # Servers start in tens of seconds: not for every day.
    test_in_a_server = in_a_server
