"""Ten thousand requests through the linker: no wrong byte, and nothing that grows. `make soak-sglang` runs it."""

import contextlib
import hashlib
import os
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from damage import flip
from pools import WINDOW, Device, device, keys_of
from server import Failed, Server, prompt
from test_linker import flags, stats

import torch

REQUESTS = 10_000
DEVICE_PAGES = 60


@dataclass(frozen=True)
class Footprint:
    """What a process has."""

    rss: int
    threads: int
    """Without those that the kernel adds for io_uring as it needs them."""
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        process = Path(f"/proc/{pid}")
        (rss,) = (line.split()[1] for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
        names = [(task / "comm").read_text() for task in (process / "task").iterdir()]
        threads = sum(not name.startswith("iou-") for name in names)
        return cls(int(rss) << 10, threads, len(list((process / "fd").iterdir())))


def content(at: Device, part, key: str, weights: int) -> list[bytes]:
    """What a page of these weights has, tensor by tensor."""
    size = part.pages.rows * part.pages.row_bytes
    text = f"{key}/{part.name}/{weights}".encode()
    count = len(part.pages.tensors)
    noise = hashlib.shake_128(text).digest(size * count)
    return [noise[number * size : (number + 1) * size] for number in range(count)]


def compute(at: Device, keys: list[str], pages: list[int], weights: int) -> None:
    """Writes pages to the device, as a forward pass does."""
    for part in at.parts:
        rows = part.pages.rows
        for key, page in zip(keys, pages, strict=True):
            for tensor, noise in zip(part.pages.tensors, content(at, part, key, weights), strict=True):
                flat = tensor[page * rows : (page + 1) * rows].view(torch.uint8).reshape(-1)
                flat.copy_(torch.frombuffer(bytearray(noise), dtype=torch.uint8))


def check(at: Device, keys: list[str], pages: list[int], weights: int) -> None:
    for part in at.parts:
        some = slice(-WINDOW, None) if part.name == "swa" else slice(None)
        for key, page in zip(keys[some], pages[some], strict=True):
            assert at.page(part, page) == content(at, part, key, weights), (part.name, key, page)


@pytest.mark.parametrize("kind", ["heads", "window"])
def test_on_pools(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    chance = random.Random(kind)
    prompts = [(f"prompt {number}", chance.randint(2, 24)) for number in range(80)]
    config = {"host": "2MiB", "path": str(tmp_path), "nvme": "128MiB", "keep_at_exit": True}
    done, started, seen, hits, cancelled, restarts = 0, 0, [], 0, 0, 0
    # What was stored under other weights must not come back, nor after a restart that has the first ones again.
    weights = 0
    while done < REQUESTS:
        started += 1
        with device(kind, **config) as at:
            weights, life = 0, chance.randint(200, 900)
            clock = [0.0]
            at.linker._holds._now = lambda clock=clock: clock[0]
            for _ in range(life):
                clock[0] += chance.choice([0.1, 0.1, 0.1, 20.0])
                name, length = prompts[min(int(chance.paretovariate(0.7)) - 1, len(prompts) - 1)]
                keys = keys_of(name, length)
                rid = f"{done}"
                done += 1
                pages = chance.sample(range(1, DEVICE_PAGES), length)
                found = at.lookup(rid, keys)
                if chance.random() < 0.05:
                    continue  # it left the queue, and nobody says so
                hit = chance.choice(found) if found and chance.random() < 0.3 else (found or [0])[-1]
                if kind == "window" and hit:
                    hit = found[-1]
                if hit:
                    if not at.linker.load(rid, at.transfers(keys[:hit], pages[:hit])):
                        continue
                    if chance.random() < 0.1:
                        assert at.linker.cancel_queued_load(rid)
                        cancelled += 1
                        continue
                    index = at.linker.start_layer_wise_loading()
                    assert at.linker.finish_layer_wise_loading(index)
                    check(at, keys[:hit], pages[:hit], weights)
                    hits += hit
                if hit < length:
                    compute(at, keys[hit:], pages[hit:], weights)
                    at.offload(keys[hit:], pages[hit:])
                    # Its pages are locked until then.
                    at.ends(1)
                if chance.random() < 0.01:
                    at.linker.reset()
                    assert at.pinned() == 0
                if chance.random() < 0.002:
                    at.linker.reset()
                    at.linker.weights_changed()
                    weights = done
            clock[0] += 1000
            at.linker.num_completed_offloads()
            assert at.pinned() == 0
            assert at.linker.counters.failed_loads == at.linker.counters.errors == 0
            for part in at.parts:
                counted = part.store.stats()
                assert counted["under_way"] == 0
                assert counted["host_used"] <= counted["host_slots"]
            seen.append(Footprint.of(os.getpid()))
        restarts += 1
        if chance.random() < 0.3:
            flip(tmp_path, every=1_000_000)
    with capsys.disabled():
        print(f"\n{kind}: {done} requests, {restarts} restarts, {hits} pages loaded, {cancelled} loads cancelled")
        for footprint in (seen[2], seen[len(seen) // 2], seen[-1]):
            print(f"  {footprint}")
    assert hits > REQUESTS
    assert seen[-1].threads <= seen[2].threads
    assert seen[-1].descriptors <= seen[2].descriptors
    # Half of the requests, and of the restarts: what the allocator keeps has been reached by then.
    assert seen[-1].rss < seen[len(seen) // 2].rss + (32 << 20)


def test_in_a_server(tmp_path: Path, capsys: pytest.CaptureFixture):
    chance = random.Random(1)
    prompts = [prompt(1000 + number, chance.randint(65, 400)) for number in range(60)]
    known: dict[int, tuple[int, ...]] = {}
    config = {"host": "4MiB", "path": str(tmp_path / "kv"), "nvme": "256MiB", "timeout": 5.0}
    done, hits, aborted, lives, report = 0, 0, 0, 5, []
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
            for pid in pids:
                report.append((life, early[pid], late[pid]))
                assert late[pid].threads <= early[pid].threads + 2
                assert late[pid].descriptors <= early[pid].descriptors + 8
                assert late[pid].rss < early[pid].rss + (64 << 20)
            assert counted["pinned"]["kv"] == counted["holds"] == counted["failed_loads"] == counted["errors"] == 0
            report.append((life, counted))
            server.stop(chance.choice([9, 15]))
        flip(tmp_path / "kv", every=3_000_000)
    with capsys.disabled():
        print(f"\nserver: {done} requests, {aborted} of them aborted, {hits} tokens loaded")
        for line in report:
            print(" ", *line)
    assert hits > 0
