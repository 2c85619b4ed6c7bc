"""`KvtierConnector` with two ranks, in processes of their own. Slow to start: run it by its name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine
from models import FAMILIES
from test_connector import PROMPTS, connector, counted, full_blocks


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_two_ranks(
    parallel: str, model_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers are other processes: they import the extension by its name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    expected = [full_blocks("gqa", each) for each in PROMPTS]
    blocks = sum(expected) // FAMILIES["gqa"].tokens_per_block
    settings = {f"{parallel}_parallel_size": 2, "distributed_executor_backend": "mp"}
    if parallel == "pipeline":
        settings["worker_extension_cls"] = "pipeline_on_cpu.Extension"
    transfer = connector(tmp_path, keep_at_exit=True)
    with Engine("gqa", model_of("gqa"), transfer=transfer, **settings) as engine:
        cold = engine.generate(PROMPTS)
        assert cold.cached == [0, 0, 0]
        engine.step_until(lambda: counted(engine, "blocks_stored") >= 2 * blocks)
        engine.forget()
        again = engine.generate(PROMPTS)
        assert again.cached == expected
        assert again.tokens == cold.tokens
        assert engine.generate(PROMPTS, salt="another").cached == [0, 0, 0]
    assert len([each for each in tmp_path.iterdir() if "of2" in each.name]) == 2

    with Engine("gqa", model_of("gqa"), transfer=transfer, **settings) as engine:
        after = engine.generate(PROMPTS)
        assert after.cached == expected
        assert after.tokens == cold.tokens
        engine.forget(connector=True)
        updated = engine.generate(PROMPTS)
        assert updated.cached == [0, 0, 0]
        assert updated.tokens == cold.tokens
