"""What the manager tells vLLM's scheduler and orders of ranks in other processes. No engine and no store."""

import pytest
from kvtier.options import StoreOptions
from kvtier.vllm._compat import CacheHitSource, LookupResult, OffloadingConfig, ReqContext
from kvtier.vllm.manager import KvtierManager
from kvtier.vllm.messages import HOST, NVME, Orders, StepResults
from kvtier.vllm.prefill import PrefillClock
from vllm.v1.kv_offload.base import make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

RANKS = 2
REQUEST = ReqContext("request")
KEYS = [make_offload_key(bytes([block]) * 32, 0) for block in range(3)]


def manager(**options: object) -> KvtierManager:
    config = OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("layer",), 0),),
        worker_kv_bytes_per_block=4096,
        enable_kv_cache_events=True,
        extra_config={},
        engine_id="engine of no process",
        model=OffloadingModelConfig("model", "bfloat16"),
        cache=OffloadingCacheConfig(16, 1),
        parallel=OffloadingParallelConfig(0, RANKS, RANKS, 1, 1, 1, 0, 1, None, False),
    )
    made = KvtierManager(config, StoreOptions.parse({"host": "1MiB"} | options))
    made.on_new_request(REQUEST)
    return made


def orders(made: KvtierManager) -> Orders:
    taken = made.take_orders()
    assert taken is not None
    return taken


def answer(made: KvtierManager, places: list[int]) -> None:
    """Both ranks, to all that was asked."""
    for ask in orders(made).asks:
        made.hear(StepResults(answers={ask.id: (RANKS, bytes(places))}))


def test_a_look_up_is_answered_some_steps_later() -> None:
    made = manager()
    made.look("request", 0, [KEYS])
    assert made.has_pending_work(), "the engine has to step for it"
    assert made.lookup(KEYS[0], REQUEST) is LookupResult.RETRY
    answer(made, [HOST, NVME, 0])
    assert not made.has_pending_work()
    assert [made.lookup(each, REQUEST).name for each in KEYS] == ["HIT", "HIT", "MISS"]
    assert made.get_load_source(KEYS[0], REQUEST) is CacheHitSource.HOST
    assert made.get_load_source(KEYS[1], REQUEST) is CacheHitSource.DISK
    stats = made.get_stats()
    assert stats is not None
    assert stats.reduce() == {"vllm:kvtier_blocks_asked": 3, "vllm:kvtier_blocks_found": 2}
    assert made.get_stats() is None


@pytest.mark.parametrize("late", [False, True])
def test_a_request_whose_load_failed_is_not_loaded_again(late: bool) -> None:
    made = manager()
    other = ReqContext("other")
    made.on_new_request(other)
    made.look("request", 0, [KEYS])
    answer(made, [HOST] * 3)
    made.hear(StepResults(failed_loads={"request": late, "over already": False}))
    made.look("request", 0, [KEYS])
    assert made.lookup(KEYS[0], REQUEST) is LookupResult.MISS
    made.look("other", 0, [KEYS])
    # While a store hangs, others are not kept waiting for it.
    assert made.lookup(KEYS[0], other) is (LookupResult.MISS if late else LookupResult.RETRY)
    made.on_request_finished(REQUEST)
    made.on_request_finished(other)
    assert not made._failed
    assert not made._requests


def test_a_reset_is_ordered_and_what_was_computed_before_is_marked() -> None:
    made = manager()
    before = made.prepare_store(KEYS, REQUEST)
    made.look("request", 0, [KEYS])
    asked = made._orders.asks[0]
    made.reset_cache()
    assert orders(made) == Orders(clear=True)
    made.hear(StepResults(answers={asked.id: (RANKS, bytes([HOST] * 3))}))
    assert made.lookup(KEYS[0], REQUEST) is LookupResult.MISS, "an answer from before the reset"
    after = made.prepare_store(KEYS, REQUEST)
    assert before is not None
    assert after is not None
    assert before.store_spec.epoch != after.store_spec.epoch  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["loaded", "over", "asked again after a failure"])
def test_what_is_held_for_a_request_is_released(how: str) -> None:
    made = manager(remotes=["redis://host"])
    made.look("request", 0, [KEYS])
    answer(made, [HOST] * 3)
    spec = made.prepare_load(KEYS, REQUEST)
    assert (spec.request, spec.keys) == ("request", KEYS)
    if how == "loaded":
        made.complete_load(KEYS, REQUEST)
    elif how == "over":
        made.on_request_finished(REQUEST)
    else:
        made.hear(StepResults(failed_loads={"request": False}))
        made.look("request", 0, [KEYS])
    assert orders(made) == Orders(release=["request"])


def test_events_name_what_was_stored() -> None:
    made = manager()
    made.hear(StepResults(not_stored={KEYS[1]}))
    made.complete_store(KEYS, REQUEST)
    (event,) = made.take_events()
    assert event.keys == [KEYS[0], KEYS[2]]
    assert not event.removed
    assert list(made.take_events()) == []
    assert not made._not_stored


def test_prefill_is_timed_from_the_end_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Request:
        """As much of vLLM's as is looked at."""

        num_computed_tokens, num_prompt_tokens = 16, 64

    class State:
        req = Request

    class Step:
        def __init__(self, **tokens: int) -> None:
            self.num_scheduled_tokens = tokens

    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = PrefillClock()
    states = {"a": State, "b": State}
    first = clock.begin(Step(a=32, b=96), states)  # type: ignore[arg-type]
    second = clock.begin(Step(a=16, unknown=3), states)  # type: ignore[arg-type]
    assert clock.begin(Step(), states) is None  # type: ignore[arg-type]
    now = 102.0
    # Tokens behind the prompt are no prefill: 32 and 48.
    assert clock.end(first) == [(16, 48, pytest.approx(0.8)), (16, 64, pytest.approx(1.2))]
    now = 103.0
    assert clock.end(second) == [(16, 32, pytest.approx(1.0))]
    assert clock.end(None) == []
