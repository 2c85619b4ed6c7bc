"""`KvtierConnector` with a remote store: a real Redis, which is stopped in the middle."""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvtier.vllm.rank import Rank

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


@pytest.mark.parametrize("family", ["gqa", "window"])
def test_a_remote_store_serves_another_engine_and_may_hang(
    family: str, redis: tuple[int, int], model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    process, port = redis
    secret = tmp_path / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    transfer = connector(remotes=[f"redis://127.0.0.1:{port}"], secret_file=str(secret), timeout=3.0)
    size = FAMILIES[family].tokens_per_block
    shorts = [prompt(3 * size + 1, of=10 + each) for each in range(20)]
    with Engine(family, model_of(family), transfer=transfer) as engine:
        cold = engine.generate(shorts)
        blocks = 3 * len(shorts)
        engine.step_until(lambda: blocks <= counted(engine, "blocks_stored") <= counted(engine, "remote_writes"))

    with Engine(family, model_of(family), transfer=transfer) as engine:
        (rank,) = ranks()
        (tier,) = rank.tiers
        # It takes this machine for a GPU until it has seen some prefill: here is what would come with time.
        for _ in range(200):
            tier.store.observed_prefill(0, 3 * size, 0.5)
        fetched = None
        while fetched is None and len(shorts) > 3:
            run = engine.generate([shorts.pop(0)])
            assert run.tokens == [cold.tokens.pop(0)]
            fetched = run if run.cached[0] else None
        assert fetched is not None, "it never loaded from Redis"
        assert fetched.cached[0] % size == 0
        engine.step_until(lambda: counted(engine, "remote_reads") > 0)
        assert not rank._fetches, "what was fetched is held no longer"
        account = tier.store.balance()
        assert account is not None
        assert account["recompute_only"] > 0

        os.kill(process, signal.SIGSTOP)
        hung = engine.generate(shorts[:1])
        assert hung.tokens == cold.tokens[:1]
        assert hung.cached == [0]
        os.kill(process, signal.SIGCONT)


def ranks() -> list[Rank]:
    from kvtier.vllm import rank

    return list(rank._OF_ENGINE.values())
