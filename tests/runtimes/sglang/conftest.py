"""One server for all tests of HiCache: they attach the backend that they are about."""

from collections.abc import Iterator

import pytest
from server import Server


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
