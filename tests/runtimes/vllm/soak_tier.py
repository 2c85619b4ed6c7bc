"""Many requests with cancels, resets, faults and restarts: no wrong token, and nothing is left behind.

Not collected by default: `python -m pytest soak_tier.py -s`. `KVTIER_SOAK_REQUESTS` is another number of requests.
"""

import gc
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from footprint import Footprint
from kvtier import Busy
from vllm import SamplingParams
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key

from engine import Engine
from hangs import Hangs
from models import prompt
from test_tier import manager_of, tier_of, transfer
from test_tier_contract import CHUNK, Below

REQUESTS = int(os.environ.get("KVTIER_SOAK_REQUESTS", "10000"))
LIVES = 5
"""Times that an engine is started on the same directory."""
AT_ONCE = 6
ANSWER = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=2)
TIE = 1e-3
"""Logits that are nearer than that may change places with the size of the batch."""


def some_prompt(random: random.Random) -> tuple[int, ...]:
    """A long beginning that others have too, and an end that few have."""
    begin = random.randrange(40)
    return (*prompt(96 + 64 * (begin % 4), of=begin), *prompt(random.choice([5, 20, 50]), of=100))


class Oracle:
    """What each prompt was answered first, and how sure the model was of it."""

    def __init__(self) -> None:
        self._answers: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        self.compared = 0

    def check(self, asked: tuple[int, ...], output: Any) -> None:
        answer = []
        for token, chances in zip(output.token_ids, output.logprobs, strict=True):
            best = sorted((chance.logprob for chance in chances.values()), reverse=True)
            answer.append((token, best[0] - best[1]))
        expected = self._answers.setdefault(asked, answer)
        self.compared += expected is not answer
        for (token, _), (right, lead) in zip(answer, expected, strict=True):
            if token != right:
                assert lead < TIE, f"{answer} instead of {expected} for a prompt of {len(asked)} tokens"
                return


class Faults:
    """Does one bad thing to the tier of an engine, now and then."""

    def __init__(self, directory: Path, random: random.Random) -> None:
        self._directory, self._random = directory, random
        self.done: dict[str, int] = {}

    def maybe(self, engine: Engine) -> None:
        """In one of ten steps."""
        if self._random.random() < 0.1:
            fault = self._random.choice([self._flip, self._remove, self._busy, self._hang, self._heal, self._heal])
            fault(tier_of(engine))
            name = fault.__name__.removeprefix("_")
            self.done[name] = self.done.get(name, 0) + 1

    def _flip(self, _: Any) -> None:
        files = [file for file in self._directory.rglob("*") if file.is_file() and file.stat().st_size > 1 << 20]
        if not files:
            return
        with self._random.choice(files).open("r+b") as file:
            place = self._random.randrange(file.seek(0, os.SEEK_END))
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << self._random.randrange(8)]))

    def _remove(self, tier: Any) -> None:
        keys = [key for job in tier._jobs._jobs.values() for key in job.keys]
        if keys:
            tier._store.remove(keys)

    def _busy(self, tier: Any) -> None:
        tier._jobs._store = Refuses(tier._store)

    def _hang(self, tier: Any) -> None:
        tier._jobs._store = Hangs(tier._store)

    def _heal(self, tier: Any) -> None:
        tier._jobs._store = tier._store
        tier._paused_until = 0.0


class Refuses:
    """A store that has too much under way."""

    def __init__(self, store: Any) -> None:
        self.__dict__["_store"] = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, *_: Any, **__: Any) -> Any:
        raise Busy("1024 operations are under way")

    put = get


def held() -> Footprint:
    gc.collect()
    return Footprint.of()


def mapped() -> int:
    """CPU tiers that this process maps."""
    return Path("/proc/self/maps").read_text().count("/dev/shm/vllm_offload")


@contextmanager
def serving(model: Path, directory: Path) -> Iterator[Engine]:
    """A KV cache for 6 requests, a CPU tier for a few more, and kvtier."""
    options = transfer(path=str(directory), nvme="512MiB", host="6MiB", timeout=0.5, keep_at_exit=True)
    options["kv_connector_extra_config"]["cpu_bytes_to_use"] = 4 << 20
    with Engine("gqa", model, transfer=options, kv_bytes=8 << 20) as engine:
        yield engine


def life(engine: Engine, requests: int, oracle: Oracle, faults: Faults, random: random.Random) -> int:
    """Serves so many requests, and returns how many of them were cancelled."""
    engines, asked, cancelled, sent = engine.llm.llm_engine, {}, 0, 0
    while sent < requests or asked:
        while sent < requests and len(asked) < AT_ONCE:
            sent += 1
            name, asked_for = f"{requests}-{random.random()}", some_prompt(random)
            salt = {"cache_salt": random.choice(["a", "b"])} if random.random() < 0.3 else {}
            engines.add_request(name, {"prompt_token_ids": list(asked_for), **salt}, ANSWER)
            asked[name] = asked_for
        for output in engines.step():
            if output.finished and (asked_for := asked.pop(output.request_id, None)) is not None:
                oracle.check(asked_for, output.outputs[0])
        faults.maybe(engine)
        if asked and random.random() < 0.02:
            name = random.choice(list(asked))
            engines.abort_request([name])
            del asked[name]
            cancelled += 1
        if not asked and random.random() < 0.2:
            engine.forget(connector=random.random() < 0.5)
    return cancelled


def quiet(engine: Engine, faults: Faults) -> tuple[int, int]:
    """Waits for what is under way; nothing may be held then. Blocks that were loaded, and that were not."""
    tier = tier_of(engine)
    faults._heal(tier)
    engine.step_until(lambda: not tier.has_pending_work())
    stats = tier._store.stats()
    assert stats["under_way"] == 0
    # Nothing is kept of requests that vLLM has forgotten.
    assert tier._failed.keys() == manager_of(engine)._req_state.keys()
    # No pin is left: all of the memory can be used.
    filler = [b"filler %d" % number for number in range(stats["host_slots"])]
    page = bytes(tier.block_size_bytes)
    for first in range(0, len(filler), 16):
        keys = filler[first : first + 16]
        assert tier._store.put(keys, page * len(keys)).wait().done == len(keys)
    return tier._counts.blocks_loaded, tier._counts.blocks_not_loaded


def test_soak(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    chance, oracle = random.Random(7), Oracle()
    faults = Faults(tmp_path, chance)
    cancelled, loaded, missed, grown, after = 0, 0, 0, [], []
    for _ in range(LIVES):
        with serving(model_of("gqa"), tmp_path) as engine:
            cancelled += life(engine, REQUESTS // LIVES // 2, oracle, faults, chance)
            half = held()
            cancelled += life(engine, REQUESTS // LIVES // 2, oracle, faults, chance)
            whole = held()
            assert whole.threads <= half.threads
            assert whole.descriptors <= half.descriptors
            grown.append((whole.rss - half.rss) >> 20)
            good, bad = quiet(engine, faults)
            loaded, missed = loaded + good, missed + bad
        after.append(held())
        assert mapped() == 0
        print(f"\n{len(after) * REQUESTS // LIVES} requests: {after[-1]}", flush=True)
    print(f"\n{REQUESTS} requests, {oracle.compared} compared, {cancelled} cancelled, faults {faults.done}")
    print(f"{loaded} blocks loaded, {missed} found and not loaded; after each life: {after}")
    print(f"mebibytes in the second half of each life: {grown}")
    assert oracle.compared > REQUESTS // 10
    assert loaded > 0
    # The first life is that in which Python and vLLM take what they keep.
    assert after[-1].threads <= after[1].threads
    assert after[-1].descriptors <= after[1].descriptors
    # vLLM's own memory moves by some tens of mebibytes. What the tier keeps is seen without an engine, below.
    assert min(grown[1:]) <= 64


def test_the_tier_keeps_nothing_of_requests(tmp_path: Path) -> None:
    """Without an engine, whose memory moves by more than what is looked for."""
    below = Below(path=str(tmp_path), nvme="256MiB", row=65536, host="8MiB")
    chance, after = random.Random(7), []
    for number in range(10_000):
        if number % 1000 == 0:
            after.append(held())
        below.tier.get_stats()
        one_request(below, f"request {number}", chance.randrange(300))
    after.append(held())
    print(f"\n{below.tier._counts.blocks_loaded} blocks loaded and compared: {after[1]} .. {after[-1]}")
    assert below.tier._counts.blocks_loaded > 50_000
    assert below.tier._store.stats()["under_way"] == len(below.tier._failed) == len(below.tier._jobs) == 0
    assert after[-1].descriptors == after[1].descriptors
    assert after[-1].threads <= after[1].threads
    assert after[-1].rss <= after[1].rss + (8 << 20)
    below.tier.shutdown()


def one_request(below: Below, name: str, chain: int) -> None:
    """Eight chunks: what is there is loaded and compared, the others are computed and stored."""
    context = ReqContext(name)
    keys = [make_offload_key(chain.to_bytes(16, "big") + number.to_bytes(16, "big"), 0) for number in range(8)]
    for number, key in enumerate(keys, 1):
        context.set_offload_key_position(key, number * CHUNK)
    below.tier.on_new_request(context)
    found = below.lookups(context, keys).count(LookupResult.HIT)
    below.rows[:8] = 0
    if found:
        result = below.load(context, keys[:found], list(range(found)))
        loaded = found if result.success else len(result.successful_keys or ())
        assert sum((below.rows[row] == (chain * 8 + row) % 250 + 1).all() for row in range(found)) == loaded
    if found < 8:
        for row in range(found, 8):
            below.rows[row] = (chain * 8 + row) % 250 + 1
        below.store(context, keys[found:], list(range(found, 8)))
    below.tier.on_schedule_end(ScheduleEndContext([name], ()))
    below.tier.on_request_finished(context)
