"""The models serve, and say the same twice. Everything else that is tested here stands on that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine
from models import FAMILIES, prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_the_same_cold_warm_and_after_a_reset(family: str, model_of: Callable[[str], Path]) -> None:
    prompts = [prompt(500, of=0), prompt(97, of=1), prompt(333, of=2)]
    with Engine(family, model_of(family)) as engine:
        cold = engine.generate(prompts)
        assert cold.cached == [0, 0, 0]
        warm = engine.generate(prompts)
        assert warm.tokens == cold.tokens
        assert all(warm.cached)
        engine.forget()
        again = engine.generate(prompts)
        assert again.cached == [0, 0, 0]
        assert again.tokens == cold.tokens
        # Or a wrong block would not be seen: another first block, another text.
        other = engine.generate([prompt(32, of=7) + prompts[0][32:]])
        assert other.tokens[0] != cold.tokens[0]
