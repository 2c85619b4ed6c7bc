"""What vLLM's tiering asks of a tier, without an engine."""

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kvtier import Busy, Invalid, OpenFailed, Unclean
from kvtier._vllm_plugin import register
from kvtier.vllm import tier as tier_module
from kvtier.vllm.tier import KvtierTier
from vllm.v1.kv_offload.base import (
    LookupResult,
    Medium,
    OffloadingKVEventsConfig,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

ROWS, ROW, CHUNK = 64, 8192, 32
KEYS = [make_offload_key(bytes([number]) * 32, 0) for number in range(200)]
CONFIG = OffloadingConfig(
    groups=(OffloadingGroupConfig(tokens_per_block=CHUNK, layer_names=("layer.0", "layer.1"), group_id=0),),
    worker_kv_bytes_per_block=ROW // 2,
    enable_kv_cache_events=True,
    extra_config={},
    engine_id="engine",
    model=OffloadingModelConfig(name="a model", dtype="bfloat16"),
    cache=OffloadingCacheConfig(tokens_per_hash=CHUNK, blocks_per_chunk=1),
    parallel=OffloadingParallelConfig(
        rank=0,
        world_size=2,
        tp_size=2,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=False,
    ),
    kv_cache_layout="LBHNC",
)


class Below:
    """A tier, and the memory of the CPU tier above it."""

    def __init__(self, config: OffloadingConfig = CONFIG, rows: int = ROWS, row: int = ROW, **options: Any) -> None:
        self.rows = np.zeros((rows, row), np.uint8)
        spec = SimpleNamespace(config=config, kv_events_config=OffloadingKVEventsConfig(True, False))
        self.tier = SecondaryTierFactory.create_secondary_tier(
            {"type": "kvtier", "module_path": "kvtier.vllm.tier", "host": "4MiB", **options},
            memoryview(self.rows),
            spec,
        )
        assert isinstance(self.tier, KvtierTier)
        self._jobs = 0

    def request(self, name: str = "request", keys: int = 0) -> ReqContext:
        """A request whose prompt has so many chunks."""
        context = ReqContext(name)
        for number, key in enumerate(KEYS[:keys], 1):
            context.set_offload_key_position(key, number * CHUNK)
        self.tier.on_new_request(context)
        return context

    def job(self, context: ReqContext, keys: list[bytes], rows: list[int], load: bool) -> TransferJob:
        self._jobs += 1
        return TransferJob(self._jobs, keys, np.array(rows, np.int32), load, context)

    def store(self, context: ReqContext, keys: list[bytes], rows: list[int]) -> Any:
        """Stores and waits."""
        self.tier.submit_store(self.job(context, keys, rows, load=False))
        self.tier.drain_jobs()
        (result,) = self.tier.get_finished_jobs()
        assert result.job_id == self._jobs
        return result

    def load(self, context: ReqContext, keys: list[bytes], rows: list[int]) -> Any:
        """Loads and waits."""
        self.tier.submit_load(self.job(context, keys, rows, load=True))
        self.tier.drain_jobs()
        (result,) = self.tier.get_finished_jobs()
        assert result.job_id == self._jobs
        return result

    def lookups(self, context: ReqContext, keys: list[bytes]) -> list[LookupResult]:
        return [self.tier.lookup(key, context) for key in keys]

    def page(self, number: int) -> np.ndarray:
        """Bytes that only one key has."""
        return np.random.default_rng(number).integers(0, 256, self.rows.shape[1], np.uint8)


@pytest.fixture
def below() -> Iterator[Below]:
    made = Below()
    yield made
    made.tier.shutdown()


HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY


def test_rows_come_back_where_they_are_wanted_and_nowhere_else(below: Below) -> None:
    for number in range(10):
        below.rows[number] = below.page(number)
    context = below.request(keys=10)
    assert below.lookups(context, KEYS[:2]) == [MISS, MISS]
    stored = below.store(context, KEYS[:10], list(range(10)))
    assert stored.success
    assert stored.transfer_bytes == 10 * ROW
    assert below.lookups(context, KEYS[:11]) == [HIT] * 10 + [MISS]
    below.rows[:] = 7
    assert below.load(context, KEYS[3:6], [60, 20, 40]).success
    for row, number in ((60, 3), (20, 4), (40, 5)):
        assert (below.rows[row] == below.page(number)).all()
    others = np.delete(np.arange(ROWS), [60, 20, 40])
    assert (below.rows[others] == 7).all()


def test_what_is_gone_is_named_and_not_asked_for_twice(below: Below) -> None:
    context, other = below.request(keys=4), below.request("other", keys=4)
    for number in range(4):
        below.rows[number] = below.page(number)
    below.store(context, KEYS[:4], [0, 1, 2, 3])
    below.tier._store.remove([KEYS[1]])
    result = below.load(context, KEYS[:4], [10, 11, 12, 13])
    assert not result.success
    assert result.successful_keys == (KEYS[0], KEYS[2], KEYS[3])
    assert (below.rows[12] == below.page(2)).all()
    # Though it is back: this request computes it.
    below.store(other, KEYS[1:2], [1])
    assert below.lookups(context, KEYS[:4]) == [HIT, MISS, HIT, HIT]
    assert below.lookups(other, KEYS[:4]) == [HIT] * 4
    below.tier.on_request_finished(context)
    assert below.lookups(below.request(keys=4), KEYS[1:2]) == [HIT]


def test_a_chain_whose_beginning_is_gone_is_stored_all_the_same(below: Below) -> None:
    context = below.request(keys=6)
    assert below.store(context, KEYS[:2], [0, 1]).success
    below.tier._store.remove(KEYS[:2])
    for number in range(2, 6):
        below.rows[number] = below.page(number)
    result = below.store(context, KEYS[2:6], [2, 3, 4, 5])
    assert result.success
    assert below.lookups(context, KEYS[:6]) == [MISS, MISS, HIT, HIT, HIT, HIT]
    below.load(context, KEYS[2:6], [22, 23, 24, 25])
    assert all((below.rows[20 + number] == below.page(number)).all() for number in range(2, 6))


def test_a_store_that_refuses_work_fails_the_job(below: Below) -> None:
    class Full:
        def get(self, *_: Any, **__: Any) -> Any:
            raise Busy("1024 operations are under way")

        put = get

    context = below.request(keys=4)
    assert below.store(context, KEYS[:2], [0, 1]).success
    below.tier._jobs._store = Full()
    assert not below.store(context, KEYS[2:4], [2, 3]).success
    result = below.load(context, KEYS[:2], [4, 5])
    assert (result.success, result.successful_keys) == (False, None)
    assert below.lookups(context, KEYS[:4]) == [MISS] * 4
    assert below.lookups(below.request("other"), KEYS[:4]) == [HIT, HIT, MISS, MISS]
    assert below.tier._counts.jobs_refused == 2
    assert not below.tier.has_pending_work()


def test_events_name_what_was_stored_if_they_are_wanted() -> None:
    below = Below(enable_kv_events=True, locality="LOCAL")
    context = below.request(keys=3)
    below.store(context, KEYS[:3], [0, 1, 2])
    (event,) = below.tier.take_events()
    assert (event.keys, event.medium, event.removed) == (KEYS[:3], Medium.STORAGE, False)
    assert not list(below.tier.take_events())
    below.tier.shutdown()
    below = Below()
    below.store(below.request(keys=3), KEYS[:3], [0, 1, 2])
    assert not list(below.tier.take_events())
    below.tier.shutdown()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nmve": "1GiB"}, "do you mean 'nvme'"),
        ({"path": "relative", "nvme": "1GiB"}, "relative"),
        ({"path": "/dev/null/below", "nvme": "1GiB"}, "/dev/null"),
        ({"host": "64KiB"}, "host"),
        ({"locality": "here"}, "Locality"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_wrong_configuration_is_refused_with_its_reason(options: dict[str, Any], says: str) -> None:
    with pytest.raises((Invalid, OpenFailed, ValueError, OSError), match=says):
        Below(**options)


def test_a_reset_keeps_what_is_stored_unless_it_is_to_be_forgotten(tmp_path: Path) -> None:
    for forget, answer in ((False, HIT), (True, MISS)):
        below = Below(path=str(tmp_path / str(forget)), nvme="64MiB", clear_on_reset=forget, keep_at_exit=True)
        context = below.request(keys=3)
        below.tier.submit_store(below.job(context, KEYS[:3], [0, 1, 2], load=False))
        below.tier.drain_jobs()
        assert len(list(below.tier.get_finished_jobs())) == 1
        assert below.lookups(context, KEYS[:3]) == [answer] * 3
        below.tier.shutdown()
        below = Below(path=str(tmp_path / str(forget)), nvme="64MiB")
        assert below.lookups(below.request(), KEYS[:3]) == [answer] * 3
        below.tier.shutdown()


def test_what_could_not_be_forgotten_is_not_served(below: Below) -> None:
    class Forgets:
        fails = True

        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def clear(self) -> None:
            if self.fails:
                raise Unclean("no space left on the device")
            self._store.clear()

    tier = below.tier
    tier._clear_on_reset, tier._store = True, Forgets(tier._store)
    context = below.request(keys=3)
    tier.submit_store(below.job(context, KEYS[:3], [0, 1, 2], load=False))
    tier.drain_jobs()
    assert below.lookups(context, KEYS[:3]) == [MISS] * 3
    Forgets.fails = False
    tier.drain_jobs()
    tier._clear_on_reset = False
    assert below.lookups(context, KEYS[:3]) == [MISS] * 3
    tier.submit_store(below.job(context, KEYS[:3], [0, 1, 2], load=False))
    tier.drain_jobs()
    assert below.lookups(context, KEYS[:3]) == [HIT] * 3


def other_parallel(**changed: Any) -> OffloadingConfig:
    return replace(CONFIG, parallel=replace(CONFIG.parallel, **changed))


@pytest.mark.parametrize(
    "opened",
    [
        lambda path: Below(path=path, nvme="64MiB", revision="2"),
        lambda path: Below(path=path, nvme="64MiB", tenant="another"),
        lambda path: Below(replace(CONFIG, model=replace(CONFIG.model, name="b model")), path=path, nvme="64MiB"),
        lambda path: Below(replace(CONFIG, model=replace(CONFIG.model, dtype="float16")), path=path, nvme="64MiB"),
        lambda path: Below(replace(CONFIG, kv_cache_layout="BLHNC"), path=path, nvme="64MiB"),
        lambda path: Below(replace(CONFIG, canonical_layout=True), path=path, nvme="64MiB"),
        lambda path: Below(replace(CONFIG, cache=replace(CONFIG.cache, tokens_per_hash=16)), path=path, nvme="64MiB"),
        lambda path: Below(other_parallel(world_size=1, tp_size=1), path=path, nvme="64MiB"),
        lambda path: Below(other_parallel(tp_size=1, pp_size=2), path=path, nvme="64MiB"),
        lambda path: Below(other_parallel(data_parallel_index=1), path=path, nvme="64MiB"),
        lambda path: Below(row=2 * ROW, path=path, nvme="64MiB"),
    ],
    ids=["revision", "tenant", "model", "dtype", "layout", "canonical", "hash", "ranks", "pipeline", "replica", "row"],
)
def test_kv_of_another_kind_is_not_found(opened: Callable[[str], Below], tmp_path: Path) -> None:
    same = Below(path=str(tmp_path), nvme="64MiB", keep_at_exit=True)
    assert same.store(same.request(keys=3), KEYS[:3], [0, 1, 2]).success
    same.tier.shutdown()
    other = opened(str(tmp_path))
    assert other.lookups(other.request(), KEYS[:3]) == [MISS] * 3
    other.tier.shutdown()
    same = Below(path=str(tmp_path), nvme="64MiB")
    assert same.lookups(same.request(), KEYS[:3]) == [HIT] * 3
    same.tier.shutdown()


def test_weights_that_were_replaced_find_nothing(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = replace(CONFIG, model=replace(CONFIG.model, name=str(model)))
    for weights, answer in ((b"old", MISS), (b"new", MISS), (b"new", HIT), (b"old", HIT)):
        (model / "model.safetensors").write_bytes(weights * 10_000)
        below = Below(config, path=str(tmp_path / "kv"), nvme="64MiB", keep_at_exit=True)
        context = below.request(keys=3)
        assert below.lookups(context, KEYS[:3]) == [answer] * 3
        below.store(context, KEYS[:3], [0, 1, 2])
        below.tier.shutdown()


CHAINS = 40
"""A store is used after about a dozen reads that nobody waited for have measured it."""


def test_a_remote_store_is_asked_once_and_never_waited_for(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    (tmp_path / "shared").mkdir()
    shared = {"remotes": [f"file://{tmp_path}/shared"], "secret_file": str(secret), "timeout": 5}
    first = Below(**shared)
    for number in range(16):
        first.rows[number] = first.page(number)
    for chain in range(CHAINS):
        context = ReqContext(f"request {chain}")
        keys = chain_keys(chain)
        for number, key in enumerate(keys, 1):
            context.set_offload_key_position(key, number * CHUNK)
        first.tier.on_new_request(context)
        assert first.store(context, keys[:8], list(range(8))).success
        # Goes on with the chain that is there.
        assert first.store(context, keys[8:], list(range(8, 16))).success
        wait_for(lambda: first.tier._store.stats()["remote_writes"] == 16 * (chain + 1))  # noqa: B023
    first.tier.shutdown()

    second = Below(**shared)
    for _ in range(20):
        second.tier._store.observed_prefill(0, 512, 5.0)
    served = 0
    for chain in range(CHAINS):
        context = second.request(f"request {chain}")
        keys = chain_keys(chain)
        assert second.lookups(context, keys) == [RETRY] * 16
        assert second.tier.has_pending_work()
        answers = until_known(second, context, keys)
        found = answers.count(HIT)
        assert answers == [HIT] * found + [MISS] * (16 - found)
        if found:
            assert second.load(context, keys[:found], list(range(found))).success
            assert all((second.rows[number] == second.page(number)).all() for number in range(found))
        served += found
        second.tier.on_schedule_end(ScheduleEndContext([context.req_id], ()))
        second.tier.on_request_finished(context)
        assert not second.tier.has_pending_work()
        time.sleep(0.1)
    assert served > 0
    second.tier.shutdown()


def chain_keys(chain: int) -> list[bytes]:
    return [make_offload_key(bytes([chain, number]) * 16, 0) for number in range(16)]


def until_known(below: Below, context: ReqContext, keys: list[bytes]) -> list[LookupResult]:
    """What vLLM does in its steps."""

    def step() -> bool:
        below.tier.on_schedule_end(ScheduleEndContext((), ()))
        below.tier.get_finished_jobs()
        return RETRY not in below.lookups(context, keys)

    wait_for(step)
    return below.lookups(context, keys)


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until, "what was waited for did not happen"
        time.sleep(0.001)


def test_memory_that_is_in_use_is_not_given_back(below: Below, monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        done = False

        def cancel(self) -> None: ...

        def wait(self, seconds: float | None = None) -> None: ...

    class Stuck:
        def get(self, *_: Any, **__: Any) -> Any:
            return Never()

    monkeypatch.setattr(tier_module, "_SHUTDOWN", 0.01)
    real, below.tier._jobs._store = below.tier._jobs._store, Stuck()
    below.tier.submit_load(below.job(below.request(), KEYS[:1], [0], load=True))
    with pytest.raises(Unclean, match="still in use"):
        below.tier.shutdown()
    below.tier._jobs._jobs.clear()
    below.tier._jobs._store = real


def test_the_short_name_is_known_to_vllm() -> None:
    register()
    register()
    assert SecondaryTierFactory.get_tier_class({"type": "kvtier"}) is KvtierTier
    entries = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert [entry.load() for entry in entries if entry.name == "kvtier"] == [register]
