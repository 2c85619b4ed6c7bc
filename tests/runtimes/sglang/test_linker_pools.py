"""The linker on SGLang's own pools: every kind of them, isolation, faults, and what requests leave behind."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from kvtier import KeyStatus
from kvtier.errors import Invalid, LoadFailed
from kvtier.sglang.holds import UNUSED_SECONDS
from kvtier.sglang.loads import Load
from pools import KINDS, WINDOW, Device, device, keys_of
from redis_server import redis
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy

import torch


@pytest.mark.parametrize("kind", KINDS)
def test_pages_come_back_to_other_places(kind: str):
    with device(kind) as at:
        at.fill(1)
        pages, others = [3, 9, 4, 30, 31, 7], [11, 12, 50, 2, 40, 41]
        before = {part.name: [at.page(part, page) for page in pages] for part in at.parts}
        keys = at.stored("prompt", pages)
        at.fill(2)
        untouched = {part.name: at.page(part, 60) for part in at.parts}
        assert at.lookup("r", keys)[-1] == len(keys)
        assert at.load("r", keys, others)
        for part in at.parts:
            # Of windows and states, the last pages alone.
            count = {"swa": WINDOW, "mamba": 1}.get(part.name.split("-")[0], len(keys))
            assert [at.page(part, page) for page in others[-count:]] == before[part.name][-count:], part.name
            assert at.page(part, 60) == untouched[part.name]
        assert at.pinned() == 0


def test_a_layer_is_there_when_it_was_waited_for():
    with device("heads") as at:
        at.fill(1)
        keys = at.stored("prompt", range(8))
        (part,) = at.parts
        before = [at.page(part, page) for page in range(8)]
        at.fill(2)
        assert at.lookup("r", keys) == list(range(1, 9))
        assert at.linker.load("r", at.transfers(keys, range(20, 28)))
        counter = at.linker.layer_done_counter
        index = at.linker.start_layer_wise_loading()
        counter.set_consumer(index)
        for layer in range(6):
            counter.wait_until(layer)
            # K and V of that layer: the tensors are in the order of the layers.
            for page in range(8):
                assert at.page(part, 20 + page)[2 * layer : 2 * layer + 2] == before[page][2 * layer : 2 * layer + 2]
        assert at.linker.finish_layer_wise_loading(index)


class Arriving:
    """A ticket whose layers arrive when they are waited for."""

    def __init__(self, fails_at: int = 1 << 30):
        self.waited: list[int] = []
        self.fails_at = fails_at

    def wait_layer(self, layer: int, timeout: float) -> None:
        if layer >= self.fails_at:
            raise LoadFailed("as the test wants it")
        self.waited.append(layer)

    def wait(self) -> None:
        pass

    def statuses(self) -> bytes:
        return bytes([KeyStatus.DONE])

    def release(self) -> None:
        pass


def test_a_layer_is_waited_for_in_every_turn_and_pool_of_a_load():
    with device("window") as at:
        counter = at.linker.layer_done_counter
        turns = {part.name: [Arriving(), Arriving()] for part in at.parts}
        index = counter.begin(Load([(part, turns[part.name]) for part in at.parts], []))
        counter.wait_until(1)
        assert not any(turn.waited for some in turns.values() for turn in some)
        counter.set_consumer(index)
        # Full attention in the layers 1 and 4, windows in the others, and V behind K.
        counter.wait_until(4)
        counter.wait_until(4)
        counter.wait_until(0)
        assert [turn.waited for turn in turns["kv"]] == [[3], [3]]
        assert [turn.waited for turn in turns["swa"]] == [[1], [1]]
        assert counter.finish(index)


def test_a_layer_that_does_not_arrive_fails_the_load_after_the_pass():
    with device("heads") as at:
        counter = at.linker.layer_done_counter
        counter.set_consumer(counter.begin(Load([(at.parts[0], [Arriving(fails_at=5)])], [])))
        for layer in range(6):
            counter.wait_until(layer)
        assert not counter.finish(counter.consumer_index)


def test_a_batch_loads_for_several_requests():
    with device("heads") as at:
        at.fill(1)
        (part,) = at.parts
        first, second = at.stored("first", range(4)), at.stored("second", range(4, 10))
        before = [at.page(part, page) for page in range(10)]
        at.fill(2)
        assert at.lookup("a", first)[-1] == 4
        assert at.lookup("b", second)[-1] == 6
        assert at.linker.load("a", at.transfers(first, range(20, 24)))
        assert at.linker.load("b", at.transfers(second[:5], range(30, 35)))
        assert at.linker.finish_layer_wise_loading(at.linker.start_layer_wise_loading())
        assert [at.page(part, page) for page in (*range(20, 24), *range(30, 35))] == before[:9]
        assert at.pinned() == 0
        assert at.linker.start_layer_wise_loading() == -1


def test_requests_of_one_prompt_load_it_to_places_of_their_own():
    with device("heads") as at:
        at.fill(1)
        (part,) = at.parts
        keys = at.stored("prompt", range(6))
        before = [at.page(part, page) for page in range(6)]
        at.fill(2)
        for number, first in enumerate((10, 20, 30)):
            assert at.lookup(f"r{number}", keys)[-1] == 6
            assert at.linker.load(f"r{number}", at.transfers(keys, range(first, first + 6)))
        assert at.linker.finish_layer_wise_loading(at.linker.start_layer_wise_loading())
        for first in (10, 20, 30):
            assert [at.page(part, page) for page in range(first, first + 6)] == before
        assert at.pinned() == 0


@pytest.mark.parametrize(("rank", "promised"), [((0, 1), [8]), ((0, 2), [4, 8])])
def test_a_prefix_ends_where_its_window_is_there(rank: tuple[int, int], promised: list[int]):
    with device("window", rank=rank) as at:
        at.fill(1)
        keys = keys_of("prompt", 20)
        # Nodes of four pages each, whose windows were stored, and pages whose windows were not.
        for node in (slice(0, 4), slice(4, 8)):
            at.offload(keys[node], list(range(20))[node])
        assert at.linker.offload(at.transfers(keys[8:], range(8, 20))[:1])
        assert at.ends(3) == [True] * 3
        assert at.lookup("r", keys) == promised
        # What another rank has agreed to, of what was promised.
        assert at.load("r", keys[: promised[0]], list(range(40, 40 + promised[0])))


def test_a_prefix_ends_where_a_state_was_stored():
    with device("state") as at:
        at.fill(1)
        keys = keys_of("prompt", 20)
        at.offload(keys[:4], range(4))
        assert at.linker.offload(at.transfers(keys[4:], range(4, 20))[:1])
        assert at.ends(2) == [True, True]
        assert at.lookup("r", keys) == [4]


def test_more_than_can_be_pinned_is_a_smaller_hit():
    with device("heads", host=64 * 16384) as at:
        (part,) = at.parts
        at.fill(1)
        keys = at.stored("prompt", range(40))
        assert part.most_pinned == 16
        assert at.lookup("a", keys)[-1] == 16
        assert at.lookup("b", keys) == []
        assert at.load("a", keys[:16], range(40, 56))
        assert at.lookup("c", keys)[-1] == 16


def test_what_requests_leave_behind_is_let_go():
    with device("heads") as at:
        at.fill(1)
        keys = at.stored("prompt", range(6))
        clock = [0.0]
        at.linker._holds._now = lambda: clock[0]
        assert at.lookup("gone", keys)[-1] == 6
        clock[0] = UNUSED_SECONDS / 2
        assert at.lookup("waits", keys)[-1] == 6
        assert at.pinned() == 12
        clock[0] = UNUSED_SECONDS + 1
        at.linker.num_completed_offloads()
        assert at.pinned() == 6
        assert at.linker.stats()["expired_holds"] == 1
        # Another lookup of the same request takes the place of the one before.
        assert at.lookup("waits", keys[:3])[-1] == 3
        assert at.pinned() == 3
        # A load that was cancelled before it began, and one whose lookup is too long ago.
        assert at.linker.load("waits", at.transfers(keys[:3], range(3)))
        assert at.linker.cancel_queued_load("waits")
        assert not at.linker.cancel_queued_load("waits")
        assert at.pinned() == 0
        assert not at.linker.load("gone", at.transfers(keys, range(6)))
        assert at.linker.start_layer_wise_loading() == -1


def test_with_other_ranks_a_load_that_cannot_be_is_a_failed_load():
    with device("heads", rank=(0, 2)) as at:
        at.fill(1)
        keys = at.stored("prompt", range(6))
        assert at.linker.load("no lookup", at.transfers(keys, range(6)))
        index = at.linker.start_layer_wise_loading()
        at.linker.layer_done_counter.set_consumer(index)
        at.linker.layer_done_counter.wait_until(0)
        assert not at.linker.finish_layer_wise_loading(index)


def test_offloads_are_counted_in_their_order():
    with device("heads") as at:
        at.fill(1)
        for number in range(20):
            at.offload(keys_of(f"prompt {number}", 3), [3 * number, 3 * number + 1, 3 * number + 2])
        assert at.ends(20) == [True] * 20
        # What is there already is stored, too.
        at.offload(keys_of("prompt 3", 3), [0, 1, 2])
        assert at.ends(1) == [True]
        assert at.linker.num_completed_offloads() == 0


def test_reset_keeps_what_is_stored():
    with device("heads") as at:
        at.fill(1)
        keys = at.stored("prompt", range(6))
        at.lookup("a", keys)
        at.lookup("b", keys)
        at.linker.load("b", at.transfers(keys, range(6)))
        at.offload(keys_of("other", 3), [7, 8, 9])
        at.linker.reset()
        assert at.pinned() == 0
        assert at.linker.num_completed_offloads() == 0
        assert at.linker.start_layer_wise_loading() == -1
        assert at.lookup("c", keys)[-1] == 6
        assert at.lookup("d", keys_of("other", 3))[-1] == 3


def stored_on(path: Path, **options: object) -> list[str]:
    """Leaves eight pages on NVMe, and nothing in memory."""
    with device("heads", path=str(path), nvme="256MiB", keep_at_exit=True, **options) as at:
        at.fill(1)
        return at.stored("prompt", range(8))


def test_what_was_stored_survives_a_restart(tmp_path: Path):
    keys = stored_on(tmp_path)
    with device("heads", path=str(tmp_path), nvme="256MiB") as at:
        at.fill(1)
        before = [at.page(at.parts[0], page) for page in range(8)]
        at.fill(2)
        assert at.lookup("r", keys)[-1] == 8
        assert at.load("r", keys, range(20, 28))
        assert [at.page(at.parts[0], page) for page in range(20, 28)] == before


@pytest.mark.parametrize("other", [{"revision": "2"}, {"tenant": "b"}, {"dtype": torch.float16}, {"rank": (0, 2)}])
def test_other_weights_dtypes_tenants_and_ranks_see_nothing(tmp_path: Path, other: dict):
    keys = stored_on(tmp_path)
    # In the very directory, whatever the rank's would be.
    (rank,) = (tmp_path / "linker").iterdir()
    assert rank.name == "tp0of1"
    (tmp_path / "linker" / "tp0of2").symlink_to(rank)
    with device("heads", path=str(tmp_path), nvme="256MiB", **other) as at:
        at.fill(2)
        assert at.lookup("r", keys) == []
    with device("heads", path=str(tmp_path), nvme="256MiB") as at:
        assert at.lookup("r", keys)[-1] == 8


def test_a_flipped_bit_is_a_miss_at_the_lookup(tmp_path: Path):
    keys = stored_on(tmp_path)
    with device("heads") as at:
        at.fill(1)
        (part,) = at.parts
        wanted = [at.page(part, page) for page in range(8)]
    flips = random.Random(5)
    for segment in tmp_path.rglob("*"):
        content = bytearray(segment.read_bytes()) if segment.is_file() and segment.stat().st_size > 1 << 16 else b""
        # In the bytes of the sixth page.
        at_byte = content.find(b"".join(wanted[5])[:64])
        if at_byte >= 0:
            content[at_byte + flips.randrange(4096)] ^= 1 << flips.randrange(8)
            segment.write_bytes(content)
            break
    else:
        pytest.fail("the sixth page is nowhere")
    with device("heads", path=str(tmp_path), nvme="256MiB") as at:
        assert at.lookup("r", keys)[-1] == 5
        # Nothing is loaded that was not promised.
        assert not at.linker.load("r", at.transfers(keys, range(20, 28)))
        assert at.lookup("r", keys)[-1] == 5
        at.fill(2)
        assert at.load("r", keys[:5], range(20, 25))
        assert [at.page(at.parts[0], page) for page in range(20, 25)] == wanted[:5]


@pytest.mark.parametrize("flushed", [True, False])
def test_new_weights_are_not_served_old_pages_nor_anybody_theirs(tmp_path: Path, flushed: bool):
    with device("heads", path=str(tmp_path), nvme="256MiB", keep_at_exit=True) as at:
        at.fill(1)
        old = at.stored("old", range(4))
        at.lookup("r", old)
        if flushed:
            # As an update does before it is over.
            at.linker.reset()
        at.linker.weights_changed()
        assert at.lookup("s", old) == []
        if not flushed:
            # What was promised, and what SGLang's own cache still has, is of the old weights.
            assert not at.linker.load("r", at.transfers(old, range(4)))
            at.offload(keys_of("between", 3), [1, 2, 3])
            assert at.ends(1) == [False]
            at.linker.reset()
            assert at.lookup("t", keys_of("between", 3)) == []
        assert at.lookup("u", old) == []
        new = at.stored("new", range(4, 8))
        assert at.lookup("v", new)[-1] == 4
        assert at.load("v", new, range(20, 24))
    # A server that starts with the old weights.
    with device("heads", path=str(tmp_path), nvme="256MiB") as at:
        assert at.lookup("r", new) == []
        assert at.lookup("s", old)[-1] == 4


def test_a_store_that_is_gone_is_a_miss():
    with device("heads") as at:
        at.fill(1)
        keys = at.stored("prompt", range(6))
        assert at.lookup("a", keys)[-1] == 6
        at.parts[0].store.close()
        assert at.lookup("b", keys) == []
        at.offload(keys_of("other", 3), [7, 8, 9])
        assert at.ends(1) == [False]
        # What was promised fails then: nothing is loaded that is not whole.
        assert at.linker.load("a", at.transfers(keys, range(20, 26)))
        assert not at.linker.finish_layer_wise_loading(at.linker.start_layer_wise_loading())
        assert at.linker.counters.errors == 3


class Hangs:
    """A store whose disk does not answer: pins of what is there alone never end."""

    def __init__(self, store):
        self.store = store
        self.asked = 0

    def __getattr__(self, name: str):
        return getattr(self.store, name)

    def exists(self, keys) -> bytes:
        return bytes(min(2 * found, 2) for found in self.store.exists(keys))

    def pin(self, keys, **_: object):
        self.asked += 1
        return self

    def wait(self, timeout: float) -> None:
        time.sleep(timeout)

    def statuses(self) -> bytes:
        return bytes(99)

    def served(self) -> list[bool]:
        return [False] * 6

    def cancel(self) -> None:
        pass

    def release(self) -> None:
        pass


def test_a_disk_that_hangs_costs_one_lookup_its_time():
    with device("heads", timeout=0.05) as at:
        at.fill(1)
        keys = at.stored("prompt", range(6))
        (part,) = at.parts
        works, hangs = part.store, Hangs(part.store)
        clock = [0.0]
        at.linker._holds._now = lambda: clock[0]
        part.store = hangs
        assert at.lookup("a", keys) == []
        assert (hangs.asked, at.linker.stats()["late_lookups"], at.pinned()) == (1, 1, 0)
        # Now it is left alone, while memory still serves.
        assert at.lookup("b", keys) == []
        assert hangs.asked == 1
        part.store = works
        assert at.lookup("c", keys)[-1] == 6
        at.linker.reset()
        part.store = hangs
        for pause, asked in ((4.0, 1), (2.0, 2), (9.0, 2), (2.0, 3)):
            # 5 s, then 10 s.
            clock[0] += pause
            assert at.lookup(f"after {clock[0]}", keys) == []
            assert hangs.asked == asked
        part.store = works


def test_a_remote_store_serves_others_and_may_hang(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(32))
    with redis(tmp_path) as (server, url):
        shared = {"remotes": [url], "secret_file": str(secret), "gpu": "H200"}
        with device("heads", **shared) as at:
            at.fill(1)
            before = [at.page(at.parts[0], page) for page in range(8)]
            keys = at.stored("prompt", range(8))
            wait_for_remote(at, 8)
        with device("heads", rank=(1, 2), **shared) as at:
            assert at.lookup("r", keys) == []
        with device("heads", **shared) as at:
            at.fill(2)
            # To recompute takes for ever, so the remote store is loaded from as soon as that was noticed.
            found = []
            for _ in range(1000):
                at.parts[0].store.observed_prefill(0, 32, 16.0)
                if found := at.lookup("r", keys):
                    break
                at.linker._holds._misses.clear()
            assert found, at.linker.stats()
            assert at.load("r", keys[: found[-1]], range(20, 20 + found[-1]))
            assert [at.page(at.parts[0], 20 + page) for page in range(found[-1])] == before[: found[-1]]
        with device("heads", timeout=1.0, **shared) as at:
            server.send_signal(signal.SIGSTOP)
            at.fill(3)
            assert at.lookup("r", keys) == []
            # What is here is served all the while.
            here = at.stored("here", range(4))
            assert at.lookup("s", here)[-1] == 4
            assert at.load("s", here, range(10, 14))


def wait_for_remote(at: Device, pages: int) -> None:
    end = time.monotonic() + 60
    while at.parts[0].store.stats().get("remote_writes", 0) < pages:
        assert time.monotonic() < end, at.parts[0].store.stats()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("config", "text"),
    [({}, "'host'"), ({"host": "1GiB", "nvme": "1GiB"}, "come together"), ({"host": "1GiB", "hots": 1}, "'hots'")],
)
def test_wrong_options_are_said_at_once(config: dict, text: str):
    with pytest.raises(Invalid, match=text), device("heads", **{"host": None, **config}):
        pass


def test_a_policy_that_is_not_known_is_a_miss():
    with device("window") as at:
        at.fill(1)
        keys = at.stored("prompt", range(4))
        transfers = at.transfers(keys)
        transfers[1].hit_policy = PoolHitPolicy.BLOCK_GROUPS
        assert at.linker.lookup("r", transfers) == []
        assert at.linker.counters.errors == 1
        assert at.lookup("r", keys) == [4]
