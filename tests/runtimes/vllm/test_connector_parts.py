"""How tensors are divided among stores, and what the worker of a rank does with jobs. No engine."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import kvtier
import pytest
import torch
from kvtier.options import StoreOptions
from kvtier.vllm._compat import CanonicalKVCaches, GPULoadStoreSpec
from kvtier.vllm.messages import HOST, Ask, LoadSpec, Orders, StepResults, StoreSpec, add_answer
from kvtier.vllm.parts import Part, parts_of
from kvtier.vllm.rank import Group, Rank, open_rank
from kvtier.vllm.worker import KvtierWorker
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCacheTensor, make_offload_key

BLOCKS = 12
GROUPS = {0: Group(16, None), 2: Group(16, 4), 3: Group(16, None)}


def tensor(page: int, stride: int | None = None) -> CanonicalKVCacheTensor:
    """Pages of random bytes, `stride` apart."""
    whole = torch.randint(-128, 128, (BLOCKS, stride or page), dtype=torch.int8)
    return CanonicalKVCacheTensor(whole[:, :page], page)


def caches() -> CanonicalKVCaches:
    """Groups 0 and 2 overlay two tensors, and group 3 one of them; group 0 has pages of another size as well."""
    tensors = [tensor(512, 640), tensor(512, 640), tensor(96)]

    def refs(*numbers: int) -> list[CanonicalKVCacheRef]:
        return [CanonicalKVCacheRef(number, tensors[number].page_size_bytes) for number in numbers]

    return CanonicalKVCaches(tensors, [refs(0, 1, 2), refs(0, 1), refs(0)])


def key(group: int, number: int) -> bytes:
    return make_offload_key(number.to_bytes(32, "big"), group)


@dataclass
class Bench:
    """A worker on those tensors."""

    caches: CanonicalKVCaches
    worker: KvtierWorker
    jobs: Iterator[int]

    def blocks(self, numbers: list[int]) -> list[torch.Tensor]:
        return [each.tensor[numbers].clone() for each in self.caches.tensors]

    def store(self, keys: list[bytes], blocks: list[int], epoch: int = 0) -> None:
        job = next(self.jobs)
        assert self.worker.submit_store(job, GPULoadStoreSpec(blocks, [len(blocks)], [0]), StoreSpec(epoch, keys))
        self.worker.wait({job})
        (result,) = self.worker.get_finished()
        assert result.job_id == job
        assert result.success

    def load(self, keys: list[bytes], blocks: list[int]) -> set[int] | None:
        """Blocks that were not loaded; none if all were."""
        job = next(self.jobs)
        assert self.worker.submit_load(job, LoadSpec("request", keys), GPULoadStoreSpec(blocks, [len(blocks)], [0]))
        self.worker.wait({job})
        assert [result.job_id for result in self.worker.get_finished()] == [job]
        failed = self.worker.take_failed_loads()
        return failed[0].blocks if failed else None


def open_store(number: int, part: Part, share: float) -> kvtier.Store:
    assert 0 < share < 1
    return kvtier.Store(part.block_bytes, int((4 << 20) * share), model="test", layout=str(number))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = caches()
    rank = open_rank("engine", StoreOptions(host=4 << 20), parts_of(made, [0, 2, 3]), GROUPS, [], open_store)
    worker = KvtierWorker(rank)
    yield Bench(made, worker, itertools.count())
    worker.shutdown()
    assert Rank.here("engine") is None


def test_groups_of_the_same_pages_share_a_store(bench: Bench) -> None:
    parts = [tier.part for tier in bench.worker.rank.tiers]
    assert [(part.groups, part.page, part.stride, len(part.starts)) for part in parts] == [
        ((0, 2), 512, 640, 2),
        ((0,), 96, 96, 1),
        ((3,), 512, 640, 1),
    ]


def test_bytes_come_back_from_every_store_of_a_group(bench: Bench) -> None:
    keys = [key(0, 1), key(0, 2), key(2, 1), key(3, 7)]
    before = bench.blocks([1, 2, 3, 4])
    bench.store(keys, [1, 2, 3, 4])
    assert bench.load(keys, [11, 10, 9, 8]) is None
    after = bench.blocks([11, 10, 9, 8])
    assert torch.equal(after[0], before[0]), "all groups have this tensor"
    assert torch.equal(after[1][:3], before[1][:3])
    assert torch.equal(after[2][:2], before[2][:2])
    # What belongs to no page of a group is left alone.
    assert not torch.equal(after[1][3], before[1][3])
    assert not torch.equal(after[2][2], before[2][2])


def test_a_load_that_is_not_whole_names_its_bad_blocks(bench: Bench) -> None:
    bench.store([key(0, 1), key(0, 3)], [1, 3])
    assert bench.load([key(0, 1), key(0, 2), key(0, 3)], [5, 6, 7]) == {6}
    # In one of two stores only.
    small = bench.worker.rank.tiers[1].store
    assert list(small.remove([key(0, 3)])) == [1]
    assert bench.load([key(0, 1), key(0, 3)], [5, 7]) == {7}
    assert list(bench.worker.rank.present([key(0, 1), key(0, 3), key(2, 1)])) == [HOST, 0, 0]


def test_what_was_computed_before_a_clear_is_not_stored_and_not_loaded(bench: Bench) -> None:
    bench.store([key(2, 1)], [1])
    bench.worker.rank.obey(Orders(clear=True))
    assert bench.load([key(2, 1)], [2]) == {2}
    bench.store([key(2, 1)], [1], epoch=0)
    assert bench.worker.take_not_stored() == {key(2, 1)}
    assert bench.load([key(2, 1)], [2]) == {2}
    bench.store([key(2, 1)], [1], epoch=1)
    assert bench.load([key(2, 1)], [2]) is None


def test_a_load_under_way_at_a_clear_is_a_failed_one(bench: Bench) -> None:
    bench.store([key(2, 1)], [1])
    assert bench.worker.submit_load(77, LoadSpec("request", [key(2, 1)]), GPULoadStoreSpec([2], [1], [0]))
    bench.worker.rank.obey(Orders(clear=True))
    bench.worker.wait({77})
    assert [result.job_id for result in bench.worker.get_finished()] == [77]
    assert [failed.blocks for failed in bench.worker.take_failed_loads()] == [{2}]


def test_a_store_that_cannot_be_cleared_serves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store([key(3, 1)], [1])
    (tier,) = [tier for _, tier in bench.worker.rank.of_group(3)]

    class Stuck:
        """A store whose directory is read-only, say."""

        store = tier.store

        def clear(self) -> None:
            raise kvtier.Unclean("not noted")

        def exists(self, keys: list[bytes]) -> bytes:
            return self.store.exists(keys)

    working = tier.store
    monkeypatch.setattr(tier, "store", Stuck())
    bench.worker.rank.obey(Orders(clear=True))
    assert list(bench.worker.rank.present([key(3, 1)])) == [0]
    monkeypatch.setattr(tier, "store", working)
    assert list(bench.worker.rank.present([key(3, 1)])) == [0]
    assert bench.load([key(3, 1)], [2]) == {2}


def test_chains_of_many_requests_are_answered_together(bench: Bench) -> None:
    bench.store([key(0, 1), key(2, 5)], [1, 2])
    asks = [
        Ask(4, "a", [[key(0, 1), key(0, 2)], [key(2, 4), key(2, 5)]]),
        Ask(5, "b", [[key(0, 2)], []]),
    ]
    bench.worker.rank.obey(Orders(asks=asks))
    assert bench.worker.rank.take_answers() == {4: bytes([HOST, 0, 0, HOST]), 5: bytes([0])}
    assert bench.worker.rank.take_answers() == {}


def test_keys_of_all_groups_are_looked_up_together(bench: Bench) -> None:
    keys = [key(3, 1), key(0, 1), key(2, 1), key(0, 2)]
    bench.store([keys[0], keys[3]], [1, 2])
    assert list(bench.worker.rank.present(keys)) == [HOST, 0, 0, HOST]


def test_a_rank_without_layers_of_a_group_has_all_of_it(bench: Bench) -> None:
    bench.worker.rank.groups = {**GROUPS, 5: Group(16, None)}
    assert list(bench.worker.rank.present([key(5, 1), key(0, 1), key(6, 1)])) == [HOST, 0, 0]
    assert bench.load([key(5, 1)], [1]) is None
    assert bench.load([key(0, 1)], [1]) == {1}


def test_keys_that_do_not_match_the_blocks_move_nothing(bench: Bench) -> None:
    bench.store([key(0, 1)], [1, 2])
    assert bench.worker.take_not_stored() == {key(0, 1)}
    bench.store([key(0, 1)], [1])
    before = bench.blocks([3, 4])
    assert bench.load([key(0, 1)], [3, 4]) == {3, 4}
    assert all(map(torch.equal, before, bench.blocks([3, 4])))


def test_a_closed_store_is_a_miss(bench: Bench) -> None:
    bench.store([key(0, 1)], [1])
    for tier in bench.worker.rank.tiers:
        tier.store.close()
    assert list(bench.worker.rank.present([key(0, 1)])) == [0]
    assert bench.load([key(0, 1)], [2]) == {2}
    bench.store([key(0, 2)], [1])
    assert bench.worker.take_not_stored() == {key(0, 2)}


def test_ranks_agree_when_all_have_a_block() -> None:
    one = StepResults(completed_jobs={1: 1}, answers={7: (1, bytes([1, 2, 0]))}, failed_loads={"r": False})
    two = StepResults(completed_jobs={1: 1}, answers={7: (1, bytes([1, 1, 1]))}, failed_loads={"r": True}, timed=3)
    both = one.aggregate(two)
    assert both.completed_jobs == {1: 2}
    assert both.answers == {7: (2, bytes([1, 2, 0]))}
    assert both.failed_loads == {"r": True}
    assert both.timed == 3
    assert add_answer(None, 1, b"\x01") == (1, b"\x01")
