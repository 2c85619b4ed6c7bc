"""One server for all tests of HiCache: they attach the backend that they are about."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import HERE, Server

# For the tests that use SGLang in their own process: the same that the servers get.
sys.path.insert(0, str(HERE / "cpu"))
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session", autouse=True)
def hicache_on_cpu() -> None:
    import hicache_on_cpu

    hicache_on_cpu.register()


@pytest.fixture(scope="session")
def hicache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with SGLang's host pool and no storage backend."""
    flags = {
        "enable-hierarchical-cache": True,
        "hicache-ratio": 2,
        "hicache-write-policy": "write_through",
    }
    with Server(tmp_path_factory.mktemp("server") / "log", flags) as server:
        yield server


@pytest.fixture
def detached(hicache: Server) -> Iterator[Server]:
    """The server, with nothing in its pools and no backend before the test and after it."""
    hicache.flush()
    yield hicache
    hicache.flush()
    hicache.detach()
