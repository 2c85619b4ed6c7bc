"""SGLang's external linker: kvtier in the place of the host pool, in a real server."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from server import PAGE, Server, prompt


def flags(config: Mapping[str, object]) -> dict[str, object]:
    linker = {"linker": "KvtierLinker", "linker_module_path": "kvtier.sglang", "linker_extra_config": config}
    return {
        "enable-unified-cache-external-linker": True,
        "unified-cache-external-linker-backend": "dynamic",
        "unified-cache-external-linker-config": json.dumps(linker),
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv")


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Iterator[Server]:
    config = {"host": "64MiB", "path": str(directory), "nvme": "1GiB"}
    with Server(tmp_path_factory.mktemp("server") / "log", flags(config)) as server:
        yield server


def test_what_was_flushed_or_evicted_comes_back(linked: Server):
    tokens = prompt(1, 700)
    cold = linked.generate(tokens)
    assert cold.cached == 0
    linked.flush()
    again = linked.generate(tokens)
    assert (again.tokens, again.device, again.host) == (cold.tokens, 0, 700 // PAGE * PAGE)
    linked.evict(2)
    evicted = linked.generate(tokens)
    assert (evicted.tokens, evicted.host) == (cold.tokens, 700 // PAGE * PAGE)
