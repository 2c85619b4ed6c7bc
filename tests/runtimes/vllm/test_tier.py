"""kvtier below the CPU tier of a real vLLM: what comes back is what was computed, or it is computed again."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kvtier.vllm.tier import KvtierTier
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager

from engine import Engine, Run
from hangs import Hangs
from models import FAMILIES, prompt

PROMPTS = [prompt(500, of=0), prompt(97, of=1), prompt(333, of=2)]


def transfer(**tier: object) -> dict[str, Any]:
    """The line of configuration of the documentation, with a worker that needs no GPU."""
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "cpu_tiering",
            "cpu_bytes_to_use": 64 << 20,
            "secondary_tiers": [{"type": "kvtier", "module_path": "kvtier.vllm.tier", "host": "64MiB", **tier}],
        },
    }


def manager_of(engine: Engine) -> TieringOffloadingManager:
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    return scheduler.connector.connector_scheduler.manager


def tier_of(engine: Engine) -> KvtierTier:
    (tier,) = manager_of(engine).secondary_tiers
    assert isinstance(tier, KvtierTier)
    return tier


def settle(engine: Engine) -> None:
    """Until all that was computed is in kvtier."""
    manager = manager_of(engine)

    def quiet() -> bool:
        states = manager._req_state.values()
        return not manager.has_pending_work() and not any(state.pending_primary_stores for state in states)

    # What a request has computed is offered in the step after it ended.
    for _ in range(3):
        engine.generate([[5, 6, 7]], tokens=2)
    engine.step_until(quiet)


def loaded(engine: Engine) -> int:
    return tier_of(engine)._counts.blocks_loaded


def whole_chunks(family: str) -> list[int]:
    """Tokens of each prompt that can be cached: all chunks but the last token's."""
    size = FAMILIES[family].tokens_per_block
    return [(len(each) - 1) // size * size for each in PROMPTS]


@dataclass(frozen=True)
class Stored:
    """What an engine has left behind."""

    directory: Path
    run: Run

    def serve(self, model: Path, **tier: object) -> Engine:
        options = {"path": str(self.directory), "nvme": "512MiB", "keep_at_exit": True, "revision": "1"}
        return Engine("gqa", model, transfer=transfer(**{**options, **tier}))


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_comes_back_through_kvtier_and_survives_a_restart(
    family: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = {"path": str(tmp_path), "nvme": "1GiB", "keep_at_exit": True}
    with Engine(family, model_of(family), transfer=transfer(**disk)) as engine:
        cold = engine.generate(PROMPTS)
        assert cold.cached == [0, 0, 0]
        settle(engine)
        assert loaded(engine) == 0
        engine.forget(connector=True)
        back = engine.generate(PROMPTS)
        assert back.tokens == cold.tokens
        assert back.cached == whole_chunks(family)
        assert loaded(engine) > 0
        # Another salt is another tenant's request.
        salted = engine.generate(PROMPTS, salt="another tenant")
        assert (salted.cached, salted.tokens) == ([0, 0, 0], cold.tokens)
        settle(engine)
        engine.forget(connector=True)
        salted = engine.generate(PROMPTS, salt="another tenant")
        assert (salted.cached, salted.tokens) == (whole_chunks(family), cold.tokens)
    with Engine(family, model_of(family), transfer=transfer(**disk)) as engine:
        again = engine.generate(PROMPTS)
        assert again.tokens == cold.tokens
        assert again.cached == whole_chunks(family)
        metrics = engine.metrics()
        time.sleep(1.1)
        engine.step_until(lambda: engine.metrics().get("vllm:kvtier_tier_blocks_loaded", 0) == loaded(engine))
        metrics = engine.metrics()
        assert metrics["vllm:kvtier_tier_nvme_reads"] > 0
        assert metrics["vllm:kvtier_tier_host_slots"] > 0


@pytest.fixture(scope="module")
def stored(model_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Stored:
    made = Stored(tmp_path_factory.mktemp("stored"), Run([], []))
    with made.serve(model_of("gqa")) as engine:
        run = engine.generate(PROMPTS)
        settle(engine)
    return Stored(made.directory, run)


def test_damaged_blocks_are_refused_and_computed_again(
    stored: Stored, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    damaged = Stored(tmp_path / "kv", stored.run)
    shutil.copytree(stored.directory, damaged.directory)
    flipped = _flip_bits(damaged.directory)
    assert flipped > 0
    with damaged.serve(model_of("gqa")) as engine:
        run = engine.generate(PROMPTS)
        assert run.tokens == stored.run.tokens
        assert sum(run.cached) < sum(whole_chunks("gqa"))
        assert tier_of(engine)._counts.blocks_not_loaded > 0
        # What was computed instead is stored, and serves.
        settle(engine)
        engine.forget(connector=True)
        run = engine.generate(PROMPTS)
        assert (run.tokens, run.cached) == (stored.run.tokens, whole_chunks("gqa"))


def _flip_bits(directory: Path) -> int:
    """One bit in every second megabyte that is written to, in the middle of it."""
    flipped = 0
    for segment in sorted(directory.rglob("*")):
        if not segment.is_file() or segment.stat().st_size < 1 << 20:
            continue
        with segment.open("r+b") as file:
            for place in range(1 << 17, segment.stat().st_size, 1 << 18):
                file.seek(place)
                (byte,) = file.read(1)
                if byte:
                    file.seek(place)
                    file.write(bytes([byte ^ 1]))
                    flipped += 1
    return flipped


def test_wrong_blocks_would_be_seen(stored: Stored, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(stored.directory, tmp_path / "kv")
    with Stored(tmp_path / "kv", stored.run).serve(model_of("gqa")) as engine:
        rows = tier_of(engine)._jobs._rows
        right = rows.runs
        # Not only another order: attention does not see the order of blocks, as keys carry their positions.
        rows.runs = lambda wanted: right([rows.count - 1] * len(wanted))
        run = engine.generate(PROMPTS)
        assert run.cached == whole_chunks("gqa")
        assert all(tokens != right for tokens, right in zip(run.tokens, stored.run.tokens, strict=True))


def test_another_revision_of_the_weights_finds_nothing(
    stored: Stored, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(stored.directory, tmp_path / "kv")
    with Stored(tmp_path / "kv", stored.run).serve(model_of("gqa"), revision="2") as engine:
        run = engine.generate(PROMPTS)
        assert (run.cached, run.tokens) == ([0, 0, 0], stored.run.tokens)
        assert loaded(engine) == 0


@contextmanager
def redis(directory: Path) -> Iterator[tuple[str, Callable[[int], None]]]:
    """A server, and how to send it a signal."""
    socket = 21000 + int(time.monotonic_ns()) % 20000
    server = subprocess.Popen(
        ["redis-server", "--port", str(socket), "--save", "", "--dir", str(directory), "--daemonize", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while subprocess.run(["redis-cli", "-p", str(socket), "ping"], capture_output=True).stdout != b"PONG\n":
            assert time.monotonic() < until, "redis-server did not start"
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{socket}", server.send_signal
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(30)


def test_a_remote_store_serves_and_one_that_hangs_costs_a_deadline(
    model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    prompts = [prompt(200 + 7 * number, of=number) for number in range(40)]
    with redis(tmp_path) as (url, send_signal):
        shared = transfer(remotes=[url], secret_file=str(secret), timeout=2)
        with Engine("gqa", model_of("gqa"), transfer=shared) as engine:
            computed = []
            for each in prompts:
                computed.append(engine.generate([each]).tokens[0])
                settle(engine)
            writes = lambda: tier_of(engine)._store.stats()["remote_writes"]  # noqa: E731
            engine.step_until(lambda: writes() >= sum((len(each) - 1) // 32 for each in prompts))
        with Engine("gqa", model_of("gqa"), transfer=shared) as engine:
            # What prefill takes on the machine that is simulated: the rule loads only what is cheaper.
            for _ in range(20):
                tier_of(engine)._store.observed_prefill(0, 512, 5.0)
            cached = 0
            for each, tokens in zip(prompts[:30], computed[:30], strict=True):
                run = engine.generate([each])
                assert run.tokens[0] == tokens
                cached += run.cached[0]
                time.sleep(0.1)
            assert cached > 0, tier_of(engine)._store.stats()
            assert loaded(engine) * 32 == cached
            send_signal(signal.SIGSTOP)
            for each, tokens in zip(prompts[30:], computed[30:], strict=True):
                run = engine.generate([each])
                assert (run.tokens[0], run.cached[0]) == (tokens, 0)
            assert not tier_of(engine).has_pending_work()


def test_a_drive_that_hangs_costs_one_deadline(stored: Stored, model_of: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(stored.directory, tmp_path / "kv")
    with Stored(tmp_path / "kv", stored.run).serve(model_of("gqa"), timeout=2) as engine:
        tier = tier_of(engine)
        tier._jobs._store = Hangs(tier._store)
        run = engine.generate(PROMPTS)
        assert (run.tokens, run.cached) == (stored.run.tokens, [0, 0, 0])
        late = tier._counts.loads_late
        assert late == len(PROMPTS)
        # The next requests do not wait for it.
        engine.forget(connector=True)
        tier._pause = 3600.0
        tier._paused_until = time.monotonic() + 3600.0
        run = engine.generate([prompt(500, of=0)])
        assert run.tokens[0] == stored.run.tokens[0]
        assert tier._counts.loads_late == late
        tier._jobs._store = tier._store
