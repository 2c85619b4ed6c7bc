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
from models import prompt
from test_connector import PROMPTS, connector, counted, full_blocks, stored


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


def test_a_remote_store_serves_another_engine_and_may_hang(
    redis: tuple[int, int], model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    process, port = redis
    secret = tmp_path / "secret"
    secret.write_bytes(secrets.token_bytes(32))
    transfer = connector(remotes=[f"redis://127.0.0.1:{port}"], secret_file=str(secret), timeout=3.0)
    with Engine("gqa", model_of("gqa"), transfer=transfer) as engine:
        cold = engine.generate(PROMPTS)
        stored(engine, "gqa")
        blocks = sum(full_blocks("gqa", each) for each in PROMPTS) // 32
        engine.step_until(lambda: counted(engine, "remote_writes") >= blocks)

    with Engine("gqa", model_of("gqa"), transfer=transfer) as engine:
        (rank,) = ranks()
        # What it believes of recomputing is that of a GPU, until it has seen some prefill here.
        for each in range(8):
            engine.generate([prompt(400, of=20 + each)])
        account = rank.tiers[0].store.balance()
        assert account is not None
        assert account["recompute_only"] > 0
        fetched = engine.generate(PROMPTS[:1])
        assert fetched.tokens == cold.tokens[:1]
        assert fetched.cached == [full_blocks("gqa", PROMPTS[0])]
        engine.step_until(lambda: counted(engine, "remote_reads") > 0)
        assert rank.tiers[0].store.stats()["under_way"] == 0
        assert not rank._fetches, "what was fetched is held no longer"

        os.kill(process, signal.SIGSTOP)
        hung = engine.generate(PROMPTS[1:])
        assert hung.tokens == cold.tokens[1:]
        assert hung.cached == [0, 0]
        os.kill(process, signal.SIGCONT)


def ranks() -> list[Rank]:
    from kvtier.vllm import rank

    return list(rank._OF_ENGINE.values())
