"""`KvtierConnector` with a remote store: a real Redis, which is stopped in the middle."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kvtier
import pytest
import torch
from kvtier.options import StoreOptions
from kvtier.vllm._compat import CanonicalKVCaches
from kvtier.vllm.messages import FETCHED, Ask, Orders
from kvtier.vllm.parts import Part, parts_of
from kvtier.vllm.prefill import PrefillClock
from kvtier.vllm.rank import Group, Rank, open_rank
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCacheTensor, make_offload_key

from engine import Engine
from models import FAMILIES, prompt
from test_connector import connector, counted


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Process and port of a server of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
        yield server.pid, port
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()


def options(url: str, secret: Path) -> dict[str, object]:
    secret.write_bytes(secrets.token_bytes(32))
    return {"remotes": [url], "secret_file": str(secret), "timeout": 3.0}


def test_what_another_engine_stored_is_fetched_and_a_store_that_hangs_is_a_miss(
    redis: tuple[int, int], tmp_path: Path
) -> None:
    """Without an engine: one that recomputes in no time would rather do that than load, and so would a GPU."""
    process, port = redis
    given = StoreOptions.parse({"host": "16MiB"} | options(f"redis://127.0.0.1:{port}", tmp_path / "secret"))
    chains = [[make_offload_key(bytes([chain, block]) * 16, 0) for block in range(4)] for chain in range(100)]
    with rank_of(given) as first:
        for chain in chains:
            (tier,) = first.tiers
            tier.store.put(chain, [bytes(tier.part.block_bytes) for _ in chain], chained=True).wait()
        wait_for(lambda: tier.store.stats()["remote_writes"] == 400)

    with rank_of(given) as second:
        found = b""
        while not any(found):
            assert len(chains) > 1, "it never loaded from Redis"
            found = look(second, chains.pop(0))
        assert found == bytes([FETCHED]) * 4
        second.release("request")

        os.kill(process, signal.SIGSTOP)
        assert look(second, chains.pop(0)) == bytes(4)
        second.release("request")
        assert not second._fetches


@contextlib.contextmanager
def rank_of(given: StoreOptions) -> Iterator[Rank]:
    """A rank with one tensor."""
    page = torch.zeros((4, 4096), dtype=torch.int8)
    caches = CanonicalKVCaches([CanonicalKVCacheTensor(page, 4096)], [[CanonicalKVCacheRef(0, 4096)]])

    def open_store(number: int, part: Part, share: float) -> kvtier.Store:
        made = given.open(part=str(number), block_bytes=part.block_bytes, model="m", layout="", tokens_per_block=64)
        for _ in range(50):
            made.observed_prefill(0, 256, 0.5)
        return made

    rank = open_rank("engine", given, parts_of(caches, [0]), {0: Group(64, None)}, [], open_store)
    try:
        yield rank
    finally:
        rank.close()


def look(rank: Rank, chain: list[bytes]) -> bytes:
    """Asks and waits for the answer."""
    rank.obey(Orders(asks=[Ask(1, "request", [chain])], release=["request"]))
    answers: dict[int, bytes] = {}
    wait_for(lambda: bool(answers.update(rank.take_answers()) or answers))
    return answers[1]


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until, "what was waited for did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("family", ["gqa", "window"])
def test_an_engine_loads_what_another_computed_and_does_not_wait_for_a_store_that_hangs(
    family: str,
    redis: tuple[int, int],
    model_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A model that takes long to recompute: the rule loads only what is cheaper.
    really = PrefillClock.end
    monkeypatch.setattr(
        PrefillClock, "end", lambda clock, timed: [(*tokens, 1000 * took) for *tokens, took in really(clock, timed)]
    )
    process, port = redis
    transfer = connector(**options(f"redis://127.0.0.1:{port}", tmp_path / "secret"))
    size = FAMILIES[family].tokens_per_block
    shorts = [prompt(3 * size + 1, of=10 + each) for each in range(40)]
    with Engine(family, model_of(family), transfer=transfer) as engine:
        cold = engine.generate(shorts)
        blocks = 3 * len(shorts)
        engine.step_until(lambda: blocks <= counted(engine, "blocks_stored") <= counted(engine, "remote_writes"))

    with Engine(family, model_of(family), transfer=transfer) as engine:
        (rank,) = ranks()
        cached = 0
        for short, tokens in zip(shorts[:30], cold.tokens, strict=False):
            run = engine.generate([short])
            assert run.tokens == [tokens]
            assert run.cached[0] % size == 0
            cached += run.cached[0]
        assert cached > 0, [tier.store.stats() for tier in rank.tiers]
        engine.step_until(lambda: counted(engine, "remote_reads") > 0)
        account = rank.tiers[0].store.balance()
        assert account is not None
        assert account["recompute_only"] > 0, "it was not told how long prefill takes"

        os.kill(process, signal.SIGSTOP)
        assert engine.generate(shorts[30:]).tokens == cold.tokens[30:]
        # What was fetched is held no longer.
        engine.step_until(lambda: not rank._fetches)


def ranks() -> list[Rank]:
    from kvtier.vllm import rank

    return list(rank._OF_ENGINE.values())
