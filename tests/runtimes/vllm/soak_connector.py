"""Ten thousand requests through `KvtierConnector`, with cancels, resets, refusals, damaged files and restarts.

Not collected by default: `python -m pytest soak_connector.py -s`. `KVTIER_SOAK_REQUESTS` is another number of requests.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kvtier
from footprint import Footprint
from kvtier.vllm import rank as rank_module
from kvtier.vllm.rank import Rank
from vllm import SamplingParams

from engine import Engine
from models import prompt
from test_connector import connector, flip, segments

REQUESTS = int(os.environ.get("KVTIER_SOAK_REQUESTS", "10000"))
PHASES = 5
PROMPTS = [prompt(40 + 17 * (each % 11), of=each) for each in range(150)]
GREEDY = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
BURST = 50
SMALL: dict[str, Any] = {"kv_bytes": 6 << 20, "max_num_seqs": 8}


class Moody:
    """A pool that now and then refuses work, as one that has too much of it."""

    def __init__(self, pool: kvtier.Pool, mood: random.Random) -> None:
        self._pool, self._mood = pool, mood

    def __getattr__(self, name: str) -> Any:
        if name in ("offload", "onboard") and self._mood.random() < 0.03:
            return self._refuse
        return getattr(self._pool, name)

    def _refuse(self, *_: object, **__: object) -> kvtier.Ticket:
        raise kvtier.Busy("refused by the soak")


def of_kvtier() -> int:
    """Threads of kvtier's own."""
    tasks = Path("/proc/self/task").iterdir()
    return sum((task / "comm").read_text().startswith(("kvtier", "kv-")) for task in tasks)


def burst(engine: Engine, first: int, expected: list[list[int]], mood: random.Random, seen: Counter[str]) -> None:
    """Serves some requests at once and compares the tokens of those that were not cancelled."""
    core = engine.llm.llm_engine
    under_way: dict[str, int] = {}
    for number in range(first, first + BURST):
        which = min(int(mood.expovariate(0.02)), len(PROMPTS) - 1)
        core.add_request(str(number), {"prompt_token_ids": PROMPTS[which]}, GREEDY)
        under_way[str(number)] = which
    while under_way:
        for output in core.step():
            if output.finished and output.request_id in under_way:
                which = under_way.pop(output.request_id)
                assert list(output.outputs[0].token_ids) == expected[which], "a wrong byte"
                seen["served"] += 1
        if mood.random() < 0.1 and under_way:
            name = mood.choice(list(under_way))
            core.abort_request([name])
            under_way.pop(name)
            seen["cancelled"] += 1
        if mood.random() < 0.005:
            # Also under requests that load, store and run.
            core.reset_prefix_cache(reset_connector=True)
            seen["clears"] += 1
    if mood.random() < 0.5:
        seen["resets"] += core.reset_prefix_cache()


def phase(
    engine: Engine, requests: int, expected: list[list[int]], mood: random.Random, path: Path | None
) -> tuple[Counter[str], int]:
    """Also returns how much memory it took after the first fifth of it, in MiB."""
    seen: Counter[str] = Counter()
    early = 0
    for first in range(0, requests, BURST):
        if not early and first >= requests // 5:
            early = Footprint.of().rss
        burst(engine, first, expected, mood, seen)
        if path is not None and mood.random() < 0.1:
            flip(mood.choice(list(segments(path))))
            seen["damaged"] += 1
    return seen, (Footprint.of().rss - early) >> 20


def test_nothing_leaks_and_no_byte_is_wrong(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    mood = random.Random(7)
    with Engine("gqa", model_of("gqa"), **SMALL) as engine:
        expected = [engine.generate([each], tokens=2).tokens[0] for each in PROMPTS]
    before = Footprint.of()
    print("\nbefore", before)
    for number in range(2):
        with Engine("gqa", model_of("gqa"), **SMALL) as engine:
            seen, grown = phase(engine, REQUESTS // PHASES // 2, expected, mood, None)
        print("without kvtier", number, dict(seen), "grown MiB", grown, "after", Footprint.of())
    after: list[Footprint] = []
    for number in range(PHASES):
        transfer = connector(tmp_path, host="6MiB", nvme="64MiB", timeout=5.0, keep_at_exit=number % 2 == 0)
        with Engine("gqa", model_of("gqa"), transfer=transfer, **SMALL) as engine:
            (rank,) = rank_module._OF_ENGINE.values()
            for tier in rank.tiers:
                tier.pool = Moody(tier.pool, mood)  # type: ignore[assignment]
            seen, grown = phase(engine, REQUESTS // PHASES, expected, mood, tmp_path)
            scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
            assert settle(engine, rank, scheduler) == 0
            counts = {name: value for name, value in engine.metrics().items() if "kvtier" in name}
            pool = scheduler.kv_cache_manager.block_pool
            assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "blocks of the KV cache leaked"
            during = Footprint.of()
        assert of_kvtier() == 0
        assert not rank_module._OF_ENGINE
        after.append(Footprint.of())
        print(number, dict(seen), {name.removeprefix("vllm:kvtier_"): int(value) for name, value in counts.items()})
        print("  grown MiB", grown, "during", during, "after", after[-1])
    # Memory is printed and not judged: vLLM's own grows with every engine of a process.
    assert after[-1].descriptors <= before.descriptors
    assert after[-1].threads <= before.threads


def settle(engine: Engine, rank: Rank, scheduler: Any) -> int:
    """Waits for the last stores. Returns what is still held then, which should be nothing."""
    manager = scheduler.connector.connector_scheduler.manager
    worker = rank.tiers
    engine.step_until(lambda: all(tier.store.stats()["under_way"] == 0 for tier in worker))
    engine.step_until(lambda: not scheduler.connector.connector_scheduler._jobs)
    # The connector hears of the last request that it is over with the step after.
    engine.llm.llm_engine.step()
    return (
        len(rank._fetches)
        + len(rank._answers)
        + len(manager._requests)
        + len(manager._failed)
        + len(manager._lookups._looks)
        + len(manager._lookups._by_id)
        + len(manager._lookups._wanted)
        + len(scheduler.connector.connector_scheduler._req_status)
    )
