"""vLLM tiering over kvtier with two tensor-parallel ranks, in processes of their own. Slow to start: run it by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine
from models import FAMILIES
from test_tier import PROMPTS, transfer, whole_chunks


def test_two_tensor_parallel_ranks(
    model_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers are other processes: they import the specification by its name.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    chunks = sum(whole_chunks("gqa")) // FAMILIES["gqa"].tokens_per_block
    settings = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    disk = transfer(path=str(tmp_path), nvme="512MiB", keep_at_exit=True)
    with Engine("gqa", model_of("gqa"), transfer=disk, **settings) as engine:
        cold = engine.generate(PROMPTS)
        assert cold.cached == [0, 0, 0]
        engine.step_until(lambda: engine.metrics().get("vllm:kvtier_tier_blocks_stored", 0) >= chunks)
        engine.forget(connector=True)
        back = engine.generate(PROMPTS)
        assert (back.cached, back.tokens) == (whole_chunks("gqa"), cold.tokens)
        assert engine.generate(PROMPTS, salt="another").cached == [0, 0, 0]
    # One store for both ranks.
    assert len(list(tmp_path.iterdir())) == 1

    with Engine("gqa", model_of("gqa"), transfer=disk, **settings) as engine:
        after = engine.generate(PROMPTS)
        assert (after.cached, after.tokens) == (whole_chunks("gqa"), cold.tokens)

    # One rank finds nothing: its rows are others.
    with Engine("gqa", model_of("gqa"), transfer=disk) as engine:
        single = engine.generate(PROMPTS)
        assert (single.cached, single.tokens) == ([0, 0, 0], cold.tokens)
