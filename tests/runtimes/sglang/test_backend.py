"""The backend in a real server: what comes back from kvtier gives the same tokens as what was computed."""

import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from damage import flip
from server import PAGE, Failed, Reply, Server, prompt
from weights import llama

WHOLE = 640
"""Tokens in whole pages of the prompts here, which have 700."""
STORED = "sglang:backuped_tokens_total"


def kvtier(path: Path | None = None, **more: object) -> dict[str, object]:
    """The configuration of the backend; without a path in memory alone."""
    given = {
        "backend_name": "kvtier",
        "module_path": "kvtier.sglang",
        "class_name": "KvtierStorage",
        "interface_v1": 1,
        "prefetch_threshold": PAGE,
        "host": "32MiB",
        "keep_at_exit": path is not None,
    }
    if path is not None:
        given |= {"path": str(path), "nvme": "128MiB"}
    return given | more


def computed(server: Server, tokens: Sequence[int]) -> Reply:
    """The reply to a prompt that nobody has seen, once its pages are stored."""
    before = server.metric(STORED)
    reply = server.generate(tokens)
    assert reply.cached == 0
    server.until(STORED, before + len(tokens) // PAGE * PAGE)
    return reply


def test_the_tokens_are_the_same_from_every_place(detached: Server) -> None:
    server = detached
    server.attach(kvtier())
    tokens = prompt(11, 700)
    cold = computed(server, tokens)
    prefetched = server.metric("sglang:prefetched_tokens_total")
    warm = server.generate(tokens)
    assert (warm.tokens, warm.device) == (cold.tokens, WHOLE)
    server.flush()
    stored = server.generate(tokens)
    assert (stored.tokens, stored.device, stored.host, stored.storage) == (cold.tokens, 0, 0, WHOLE)
    assert server.metric("sglang:prefetched_tokens_total") == prefetched + WHOLE
    server.evict(11)
    evicted = server.generate(tokens)
    assert (evicted.tokens, evicted.device, evicted.host) == (cold.tokens, 0, WHOLE)
    # A part of it, followed by something else.
    server.flush()
    branch = tokens[:300] + prompt(12, 200)
    alone = server.generate(branch)
    assert alone.storage == 256
    server.detach()
    server.flush()
    assert server.generate(branch).tokens == alone.tokens
    for name in ("sglang:backup_bandwidth_count", "sglang:prefetch_bandwidth_count"):
        assert server.metric(name) > 0


def test_what_is_on_disk_outlives_the_backend_and_is_this_revisions_alone(detached: Server, tmp_path: Path) -> None:
    server = detached
    server.attach(kvtier(tmp_path, revision="1"))
    tokens = prompt(21, 700)
    cold = computed(server, tokens)
    server.detach()
    server.flush()
    server.attach(kvtier(tmp_path, revision="2"))
    other = server.generate(tokens)
    assert (other.tokens, other.cached) == (cold.tokens, 0)
    server.detach()
    server.flush()
    server.attach(kvtier(tmp_path, revision="1"))
    again = server.generate(tokens)
    assert (again.tokens, again.storage) == (cold.tokens, WHOLE)


def test_a_flipped_bit_is_recomputed(detached: Server, tmp_path: Path) -> None:
    server = detached
    server.attach(kvtier(tmp_path))
    prompts = [prompt(31 + at, 700) for at in range(4)]
    cold = [computed(server, tokens) for tokens in prompts]
    server.detach()
    server.flush()
    # A page of this model has 64 KiB, so this is some pages of every prompt.
    assert flip(tmp_path, every=400_000)
    server.attach(kvtier(tmp_path))
    warm = [server.generate(tokens) for tokens in prompts]
    assert [reply.tokens for reply in warm] == [reply.tokens for reply in cold]
    assert sum(reply.storage for reply in warm) < 4 * WHOLE


def test_what_was_cleared_does_not_come_back(detached: Server, tmp_path: Path) -> None:
    server = detached
    server.attach(kvtier(tmp_path))
    tokens = prompt(41, 700)
    cold = computed(server, tokens)
    server.call("POST", "/hicache/storage-backend/clear")
    server.flush()
    again = server.generate(tokens)
    assert (again.tokens, again.cached) == (cold.tokens, 0)


def test_new_weights_get_nothing_of_the_old(detached: Server, tmp_path: Path) -> None:
    server = detached
    server.attach(kvtier(tmp_path))
    tokens = prompt(51, 700)
    replies = [computed(server, tokens)]
    # While nothing is attached, and while it is. The last has the weights of the first again, which nobody can know.
    server.detach()
    server.flush()
    for seed in (1, 2, 0):
        server.call("POST", "/update_weights_from_disk", {"model_path": str(llama(seed))})
        if seed == 1:
            server.attach(kvtier(tmp_path))
        replies.append(computed(server, tokens))
    assert len({reply.tokens for reply in replies}) == 3
    assert replies[3].tokens == replies[0].tokens
    server.flush()
    again = server.generate(tokens)
    assert (again.tokens, again.storage) == (replies[3].tokens, WHOLE)


def test_a_wrong_configuration_is_told_and_changes_nothing(detached: Server, tmp_path: Path) -> None:
    server = detached
    with pytest.raises(Failed, match="do you mean 'host'"):
        server.attach(kvtier(hots="1GiB"))
    with pytest.raises(Failed, match="come together"):
        server.attach(kvtier() | {"nvme": "1GiB"})
    (tmp_path / "file").touch()
    with pytest.raises(Failed, match="file"):
        server.attach(kvtier(tmp_path / "file"))
    server.detach()
    tokens = prompt(61, 700)
    server.attach(kvtier(tmp_path / "directory"))
    cold = computed(server, tokens)
    server.flush()
    assert server.generate(tokens) == Reply(cold.tokens, device=0, host=0, storage=WHOLE)


def test_two_ranks_with_failures_and_a_restart(tmp_path: Path) -> None:
    store = tmp_path / "store"
    flags = {
        "tp": 2,
        "enable-hierarchical-cache": True,
        "hicache-ratio": 2,
        "hicache-storage-backend": "dynamic",
        "hicache-storage-backend-extra-config": json.dumps(kvtier(store)),
        "hicache-storage-prefetch-policy": "wait_complete",
    }
    faults = {
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.3",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.02",
    }
    prompts = [prompt(71 + at, 700) for at in range(6)]
    # As many ranks as there are NUMA nodes would need no binding.
    bound = {"SGLANG_CPU_OMP_THREADS_BIND": "0|0"}
    with Server(tmp_path / "first", flags, faults | bound) as server:
        cold = [server.generate(tokens).tokens for tokens in prompts]
        hits = 0
        for _ in range(4):
            server.flush()
            replies = [server.generate(tokens) for tokens in prompts]
            assert [reply.tokens for reply in replies] == cold
            hits += sum(reply.storage for reply in replies)
        # Failures make misses, on both ranks at once: neither all nor none.
        assert 0 < hits < 4 * 6 * WHOLE
        server.stop(signal.SIGTERM)
    assert sorted(path.name for path in store.iterdir()) == ["tp0of2", "tp1of2"]

    with Server(tmp_path / "second", flags, bound) as server:
        replies = [server.generate(tokens) for tokens in prompts]
        assert [reply.tokens for reply in replies] == cold
        assert sum(reply.storage for reply in replies) > 0
        threads = [threading.Thread(target=server.generate, args=(tokens,)) for tokens in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
