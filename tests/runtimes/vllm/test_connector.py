"""`KvtierConnector` in a real engine: KV comes back through kvtier, and the tokens are the same whatever happens."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.distributed.kv_transfer import get_kv_transfer_group

from engine import Engine
from hangs import HangingPool
from models import FAMILIES, make_model, prompt

PROMPTS = [prompt(500, of=0), prompt(97, of=1), prompt(333, of=2)]


def connector(path: Path | None = None, **options: object) -> dict[str, Any]:
    """The line of `--kv-transfer-config`."""
    extra: dict[str, object] = {"host": "64MiB"}
    if path is not None:
        extra |= {"path": str(path), "nvme": "256MiB"}
    return {
        "kv_connector": "KvtierConnector",
        "kv_connector_module_path": "kvtier.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra | options,
    }


def full_blocks(family: str, tokens: list[int]) -> int:
    """Tokens of a prompt that vLLM can take from a cache: whole blocks, but never the last token."""
    size = FAMILIES[family].tokens_per_block
    return (len(tokens) - 1) // size * size


def counted(engine: Engine, name: str) -> float:
    return engine.metrics().get(f"vllm:kvtier_{name}", 0)


def stored(engine: Engine, family: str) -> None:
    """Steps until every whole block of the prompts is in kvtier."""
    blocks = sum(full_blocks(family, each) for each in PROMPTS) // FAMILIES[family].tokens_per_block
    engine.step_until(lambda: counted(engine, "blocks_stored") >= blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_comes_back_survives_a_restart_and_is_refused_when_damaged(
    family: str, model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = [full_blocks(family, each) for each in PROMPTS]
    with Engine(family, model_of(family), transfer=connector(tmp_path, keep_at_exit=True)) as engine:
        cold = engine.generate(PROMPTS)
        assert cold.cached == [0, 0, 0]
        stored(engine, family)
        assert engine.generate(PROMPTS).tokens == cold.tokens
        assert counted(engine, "blocks_loaded") == 0, "the engine's own cache was not used"

        engine.forget()
        again = engine.generate(PROMPTS)
        assert again.tokens == cold.tokens
        assert again.cached == expected
        engine.step_until(lambda: counted(engine, "blocks_loaded") > 0)

        # Another salt shares nothing, in the engine's cache or ours.
        salted = engine.generate(PROMPTS, salt="another")
        assert salted.cached == [0, 0, 0]
        assert salted.tokens == cold.tokens

    with Engine(family, model_of(family), transfer=connector(tmp_path, keep_at_exit=True)) as engine:
        whole, damaged = PROMPTS[1:], PROMPTS[:1]
        after = engine.generate(whole)
        assert after.cached == expected[1:]
        assert after.tokens == cold.tokens[1:]
        engine.step_until(lambda: counted(engine, "nvme_reads") > 0)
        assert counted(engine, "loads_failed") == 0

        for file in segments(tmp_path):
            flip(file)
        assert engine.generate(damaged).tokens == cold.tokens[:1]
        engine.step_until(lambda: counted(engine, "loads_failed") == 1)
        # It serves on, with what is good.
        engine.forget()
        again = engine.generate(whole)
        assert again.tokens == cold.tokens[1:]
        assert again.cached == expected[1:]

        # Weights updated in place: nothing stored before is served.
        engine.forget(connector=True)
        updated = engine.generate(PROMPTS)
        assert updated.cached == [0, 0, 0]
        assert updated.tokens == cold.tokens


def test_other_weights_are_other_kv(tmp_path: Path) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    make_model("gqa", model)
    with Engine("gqa", model, transfer=connector(store, keep_at_exit=True)) as engine:
        first = engine.generate(PROMPTS)
        stored(engine, "gqa")
    with Engine("gqa", model, transfer=connector(store, revision="2")) as engine:
        assert engine.generate(PROMPTS).cached == [0, 0, 0]
    # Under the same name, and called the same revision.
    make_model("gqa", model, seed=1)
    with Engine("gqa", model, transfer=connector(store)) as engine:
        second = engine.generate(PROMPTS)
        assert second.cached == [0, 0, 0]
        assert second.tokens != first.tokens


def segments(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file() and file.stat().st_size > 1 << 20)


def flip(file: Path) -> None:
    """One bit in each 16 KiB: in every block."""
    with file.open("r+b") as opened:
        for at in range(8192, file.stat().st_size, 16384):
            opened.seek(at)
            byte = opened.read(1)
            opened.seek(at)
            opened.write(bytes([byte[0] ^ 1]))


def test_a_drive_that_hangs_costs_one_deadline(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    expected = [full_blocks("gqa", each) for each in PROMPTS]
    with Engine("gqa", model_of("gqa"), transfer=connector(tmp_path, timeout=2)) as engine:
        cold = engine.generate(PROMPTS)
        stored(engine, "gqa")
        engine.forget()
        drive = HangingPool(get_kv_transfer_group()._worker)
        began = time.monotonic()
        late = engine.generate(PROMPTS)
        assert late.tokens == cold.tokens
        assert late.cached == [0, 0, 0]
        assert time.monotonic() - began >= 2, "nothing was loaded: the test shows nothing"
        engine.step_until(lambda: counted(engine, "loads_late") == len(PROMPTS))
        assert counted(engine, "blocks_loaded") == 0

        drive.heal()
        time.sleep(2)
        engine.forget()
        again = engine.generate(PROMPTS)
        assert again.tokens == cold.tokens
        assert again.cached == expected


@pytest.mark.parametrize("family", ["gqa", "window"])
def test_ranks_elsewhere_are_asked_by_way_of_the_steps(
    family: str, model_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with several ranks: the scheduler does not see the store.
    monkeypatch.setattr("kvtier.vllm.rank.Rank.here", staticmethod(lambda engine: None))
    with Engine(family, model_of(family), transfer=connector()) as engine:
        cold = engine.generate(PROMPTS)
        stored(engine, family)
        engine.forget()
        again = engine.generate(PROMPTS)
        assert again.cached == [full_blocks(family, each) for each in PROMPTS]
        assert again.tokens == cold.tokens
        engine.forget(connector=True)
        updated = engine.generate(PROMPTS)
        assert updated.cached == [0, 0, 0]
        assert updated.tokens == cold.tokens


def test_wrong_configurations_say_so_at_once(model_of: Callable[[str], Path]) -> None:
    model = model_of("gqa")
    with pytest.raises(Exception, match="recompute"):
        Engine("gqa", model, transfer=connector() | {"kv_load_failure_policy": "fail"})
    with pytest.raises(Exception, match="do you mean 'host'"):
        Engine("gqa", model, transfer=connector(hosts="1GiB"))
