"""A real vLLM engine on this machine's CPU, in this process."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.platforms.cpu import CpuPlatform

from models import FAMILIES

_check_and_update_config = CpuPlatform.check_and_update_config


def _keep_prefix_caching(_: type[CpuPlatform], vllm_config: Any) -> None:
    """vLLM turns prefix caching off for MLA on CPUs without AMX, though its attention there can continue a prefix."""
    wanted = vllm_config.cache_config.enable_prefix_caching
    _check_and_update_config(vllm_config)
    vllm_config.cache_config.enable_prefix_caching = wanted


CpuPlatform.check_and_update_config = classmethod(_keep_prefix_caching)  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Run:
    """What the engine answered, request by request."""

    tokens: list[list[int]]
    cached: list[int]
    """Tokens of each prompt whose KV was not computed, from wherever it came."""


class Engine:
    """Serves a model of `models.py`, greedily and with all the same settings."""

    def __init__(
        self,
        family: str,
        model: Path,
        *,
        transfer: Mapping[str, Any] | None = None,
        kv_bytes: int = 32 << 20,
        **settings: Any,
    ) -> None:
        self.llm = LLM(
            model=str(model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            kv_cache_memory_bytes=kv_bytes,
            block_size=FAMILIES[family].tokens_per_block,
            enable_prefix_caching=True,
            disable_log_stats=False,
            seed=0,
            # vLLM's rotary embedding for CPUs is wrong on the strided slices of MLA; the one in Python is right.
            compilation_config={"custom_ops": ["-rotary_embedding"]} if family == "mla" else {},
            kv_transfer_config=None if transfer is None else KVTransferConfig(**transfer),
            **settings,
        )

    def generate(self, prompts: Sequence[Sequence[int]], *, tokens: int = 16, salt: str | None = None) -> Run:
        """Serves all prompts, as one batch."""
        salted = {} if salt is None else {"cache_salt": salt}
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt), **salted} for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            use_tqdm=False,
        )
        return Run([list(each.outputs[0].token_ids) for each in outputs], [each.num_cached_tokens for each in outputs])

    def step_until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Steps the engine with requests too short to be cached: it only collects finished transfers while it steps."""
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, "what was waited for did not happen"
            self.generate([[5, 6, 7]], tokens=2)

    def forget(self, *, connector: bool = False) -> None:
        """Empties the engine's prefix cache, with `connector` also the one that its connector keeps in memory."""
        assert self.llm.reset_prefix_cache(reset_connector=connector)

    def metrics(self) -> dict[str, float]:
        """Counters and gauges of the engine's Prometheus registry: the sum over all labels."""
        found: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            value = getattr(metric, "value", getattr(metric, "count", None))
            if isinstance(value, (int, float)):
                found[metric.name] = found.get(metric.name, 0) + value
        return found

    def close(self) -> None:
        """Ends the engine. Another one can be opened in the same process."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()
        gc.collect()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
