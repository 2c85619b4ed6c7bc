"""SGLang's external linker: kvtier in the place of the host pool, in a real server."""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from damage import flip
from redis_server import redis
from server import PAGE, Failed, Server, prompt
from weights import llama

WHOLE = 640
"""Tokens in whole pages of the prompts here, which have 700."""


def flags(**config: object) -> Mapping[str, object]:
    linker = {"linker": "KvtierLinker", "linker_module_path": "kvtier.sglang", "linker_extra_config": config}
    return {
        "enable-unified-cache-external-linker": True,
        "unified-cache-external-linker-backend": "dynamic",
        "unified-cache-external-linker-config": json.dumps(linker),
    }


def stats(server: Server, ranks: int = 1) -> list[dict]:
    """What the linkers count, of each rank, at a flush."""
    server.flush()
    lines = [line for line in server.log.read_text().splitlines() if "kvtier: at a flush: " in line]
    return [json.loads(line.split("kvtier: at a flush: ")[1]) for line in lines[-ranks:]]


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with room for some prompts in memory, and for all on disk."""
    directory = tmp_path_factory.mktemp("kv")
    config = flags(host="6MiB", path=str(directory), nvme="1GiB", timeout=5.0)
    with Server(tmp_path_factory.mktemp("server") / "log", config) as server:
        yield server, directory


def test_what_was_flushed_or_evicted_comes_back(linked: tuple[Server, Path]):
    server, _ = linked
    tokens = prompt(1, 700)
    cold = server.generate(tokens)
    assert cold.cached == 0
    server.flush()
    again = server.generate(tokens)
    assert (again.tokens, again.device, again.host) == (cold.tokens, 0, WHOLE)
    warm = server.generate(tokens)
    assert (warm.tokens, warm.device) == (cold.tokens, WHOLE)
    # Out of kvtier's memory, too: from NVMe.
    for seed in (2, 3):
        server.evict(seed)
    evicted = server.generate(tokens)
    assert (evicted.tokens, evicted.device, evicted.host) == (cold.tokens, 0, WHOLE)
    # A part of it, followed by something else.
    server.flush()
    branch = tokens[:300] + prompt(4, 200)
    assert server.generate(branch).host == 256
    (counted,) = stats(server)
    assert counted["stores"]["kv"]["nvme_reads"] >= WHOLE // PAGE
    assert counted["loaded_pages"] == 2 * (WHOLE // PAGE) + 4
    assert counted["errors"] == counted["failed_loads"] == counted["failed_offloads"] == counted["pinned"]["kv"] == 0


def test_flipped_bits_are_recomputed(linked: tuple[Server, Path]):
    server, directory = linked
    prompts = [prompt(10 + at, 700) for at in range(4)]
    cold = [server.generate(tokens).tokens for tokens in prompts]
    for seed in (14, 15):
        server.evict(seed)
    server.flush()
    # Some pages of every prompt.
    assert flip(directory, every=400_000)
    warm = [server.generate(tokens) for tokens in prompts]
    assert [reply.tokens for reply in warm] == cold
    assert sum(reply.host for reply in warm) < 4 * WHOLE
    (counted,) = stats(server)
    assert counted["stores"]["kv"]["refused_loads"] > 0
    assert counted["failed_loads"] == 0


def test_requests_that_are_aborted_leave_nothing_behind(linked: tuple[Server, Path]):
    server, _ = linked
    prompts = [prompt(20 + at, 700) for at in range(12)]
    cold = [server.generate(tokens).tokens for tokens in prompts[:6]]
    server.flush()

    def ask(number: int) -> None:
        body = {
            "rid": f"request-{number}",
            "input_ids": prompts[number % 12],
            "sampling_params": {"max_new_tokens": 64, "temperature": 0, "ignore_eos": True},
        }
        with contextlib.suppress(Failed):
            server.call("POST", "/generate", body)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for number in range(24):
        server.call("POST", "/abort_request", {"rid": f"request-{number}"})
    for thread in threads:
        thread.join()
    (counted,) = stats(server)
    assert counted["pinned"]["kv"] == counted["holds"] == 0
    assert [server.generate(tokens).tokens for tokens in prompts[:6]] == cold


def test_new_weights_get_nothing_of_the_old(linked: tuple[Server, Path]):
    server, _ = linked
    tokens = prompt(30, 700)
    replies = []
    for seed in (1, 2):
        server.call("POST", "/update_weights_from_disk", {"model_path": str(llama(seed))})
        replies.append(server.generate(tokens))
        assert replies[-1].cached == 0
    assert replies[0].tokens != replies[1].tokens
    server.flush()
    again = server.generate(tokens)
    assert (again.tokens, again.host) == (replies[1].tokens, WHOLE)


def test_two_ranks_a_crash_a_restart_and_a_remote_store_that_hangs(tmp_path: Path):
    config = {"host": "32MiB", "path": str(tmp_path / "kv"), "nvme": "512MiB", "keep_at_exit": True, "timeout": 2.0}
    prompts = [prompt(50 + at, 700) for at in range(6)]
    # Both in the machine's first processor, and without NCCL, which asks for GPUs.
    ranks = {"SGLANG_CPU_OMP_THREADS_BIND": "0|0", "SGLANG_NCCL_SO_PATH": "/dev/null"}
    with Server(tmp_path / "first", {"tp": 2, **flags(**config)}, ranks) as server:
        cold = [server.generate(tokens) for tokens in prompts]
        assert [reply.cached for reply in cold] == [0] * 6
        server.flush()
        warm = [server.generate(tokens) for tokens in prompts]
        assert [(reply.tokens, reply.host) for reply in warm] == [(reply.tokens, WHOLE) for reply in cold]
        server.stop(signal.SIGTERM)
    assert sorted(path.name for path in (tmp_path / "kv" / "linker").iterdir()) == ["tp0of2", "tp1of2"]
    # One rank has lost some pages: what both have is what counts.
    assert flip(tmp_path / "kv" / "linker" / "tp1of2", every=400_000)
    with redis(tmp_path) as (hangs, url):
        shared = {"remotes": [url], "gpu": "H200"}
        with Server(tmp_path / "second", {"tp": 2, **flags(**config, **shared)}, ranks) as server:
            replies = [server.generate(tokens) for tokens in prompts[:4]]
            assert [reply.tokens for reply in replies] == [reply.tokens for reply in cold[:4]]
            assert 0 < sum(reply.host for reply in replies) < 4 * WHOLE
            hangs.send_signal(signal.SIGSTOP)
            server.flush()
            replies = [server.generate(tokens) for tokens in prompts]
            assert [reply.tokens for reply in replies] == [reply.tokens for reply in cold]
            for counted in stats(server, ranks=2):
                assert counted["failed_loads"] == counted["errors"] == counted["pinned"]["kv"] == 0
            server.stop(signal.SIGKILL)
