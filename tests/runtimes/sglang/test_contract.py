"""The backend under SGLang's own host pools and the controller's own functions, without a server."""

import itertools
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import kvtier
import pytest
from damage import flip
from host_pools import (
    MHA_LAYOUTS,
    MLA_LAYOUTS,
    PAGE,
    Controller,
    attach,
    config,
    content,
    fill,
    keys,
    mha,
    mla,
    options,
    slots,
)
from kvtier.sglang import KvtierStorage
from redis_server import redis
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

import torch

POOLS = [(mha, layout) for layout in MHA_LAYOUTS] + [(mla, layout) for layout in MLA_LAYOUTS]


@pytest.mark.parametrize(("make", "layout"), POOLS)
@pytest.mark.parametrize("saved", ["zero_copy", "generic"])
@pytest.mark.parametrize("loaded", ["zero_copy", "generic"])
def test_pages_come_back_bit_for_bit_in_other_slots(make, layout: str, saved: str, loaded: str) -> None:
    pool = make(layout)
    fill(pool, 1)
    before = [content(pool, page) for page in range(8)]
    backend = attach(options() | {"interface_v1": int(loaded == "zero_copy")}, pool)
    controller = Controller(backend, pool)
    assert controller.save(keys(4), [0, 3, 1, 2], generic=saved == "generic")

    fill(pool, 2)
    others = {page: content(pool, page) for page in range(8) if page not in (7, 4, 6, 5)}
    # The order of a flat page is that of the runs, except in this layout: what one wrote is a miss for the other.
    if layout == "layer_first" and saved != loaded:
        assert backend.batch_exists(keys(4)) == 0
        assert controller.load(keys(4), [7, 4, 6, 5], generic=loaded == "generic") == 0
    else:
        assert backend.batch_exists(keys(4)) == 4
        assert controller.load(keys(4), [7, 4, 6, 5], generic=loaded == "generic") == 4
        assert [content(pool, page) for page in (7, 4, 6, 5)] == [before[page] for page in (0, 3, 1, 2)]
    assert others == {page: content(pool, page) for page in others}
    backend.close()


def test_a_prefix_ends_at_the_first_page_that_is_missing() -> None:
    pool = mha()
    fill(pool, 1)
    backend = attach(options(), pool)
    controller = Controller(backend, pool)
    names = keys(6)
    assert controller.save(names[:2] + names[3:], [0, 1, 3, 4, 5])
    assert backend.batch_exists(names) == 2
    assert controller.load(names, range(10, 16)) == 2
    assert backend.batch_get_v1(names, slots(range(10, 16))) == [True, True, False, True, True, True]
    assert [backend.exists(name) for name in names] == [True, True, False, True, True, True]
    assert backend.batch_exists([]) == 0
    assert backend.batch_get_v1([], slots([0])[:0]) == []
    backend.close()


def test_tensors_that_are_no_pages_are_refused() -> None:
    pool = mha()
    backend = attach(options(), pool)
    page = pool.get_dummy_flat_data_page()
    assert backend.set(keys(1)[0], page)
    assert backend.get(keys(1)[0], page) is page
    assert backend.get(keys(1)[0], page[:-1]) is None
    assert backend.get(keys(1)[0]) is None
    assert not backend.set("other", page[:-1])
    assert not backend.set("other")
    assert not backend.exists("other")
    backend.close()


BASE = {
    "revision": "1",
    "model_name": "llama",
    "dtype": torch.bfloat16,
    "layout": "page_first",
    "tp": (0, 2),
    "pp": (0, 1),
}
BASE |= {"cp": (0, 1), "server": "auto"}


def _opened(path: Path, monkeypatch: pytest.MonkeyPatch, what: dict) -> tuple[KvtierStorage, Controller]:
    import kvtier.sglang.namespace as namespace

    monkeypatch.setattr(namespace, "setting", lambda name: what["server"] if name == "kv_cache_dtype" else None)
    # A rank's directory says which one it is. Here all have the same, so that it is not this what keeps them apart.
    monkeypatch.setattr(namespace.Rank, "directory", lambda self: "one")
    pool = mha(what["layout"], what["dtype"])
    backend = attach(
        options(path, revision=what["revision"]),
        pool,
        model_name=what["model_name"],
        tp_rank=what["tp"][0],
        tp_size=what["tp"][1],
        pp_rank=what["pp"][0],
        pp_size=what["pp"][1],
        attn_cp_rank=what["cp"][0],
        attn_cp_size=what["cp"][1],
    )
    return backend, Controller(backend, pool)


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "2"},
        {"model_name": "qwen"},
        {"dtype": torch.float16},
        {"layout": "page_head"},
        {"layout": "page_first_direct"},
        {"layout": "layer_first"},
        {"tp": (1, 2)},
        {"tp": (0, 4)},
        {"pp": (0, 2)},
        {"cp": (1, 2)},
        {"server": "fp8_e5m2"},
    ],
    ids=str,
)
def test_pages_of_another_model_revision_dtype_layout_or_rank_are_never_hits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    names = keys(3)
    want = {}
    for at, one in enumerate((BASE, BASE | change)):
        backend, controller = _opened(tmp_path, monkeypatch, one)
        assert backend.batch_exists(names) == 0
        fill(controller.storage_host_pool, at)
        want[at] = [content(controller.storage_host_pool, page) for page in range(3)]
        assert controller.save(names, range(3))
        assert backend._pools["kv"].store.flush().wait().done == 1
        backend.close()
    # Both have the same keys by now, and each finds its own pages.
    for at, one in enumerate((BASE, BASE | change)):
        backend, controller = _opened(tmp_path, monkeypatch, one)
        assert controller.load(names, range(3)) == 3
        assert [content(controller.storage_host_pool, page) for page in range(3)] == want[at]
        backend.close()


def test_every_rank_of_an_mla_model_keeps_its_own_copy_of_the_same_pages(tmp_path: Path) -> None:
    pool = mla()
    fill(pool, 1)
    given = config(options(tmp_path), is_mla_model=True, tp_rank=1, tp_size=2)
    backend = KvtierStorage(given, {})
    assert given.is_storage_writer
    backend.register_mem_pool_host(pool)
    backend.on_host_pools_registered()
    assert Controller(backend, pool).save(keys(2), [0, 1])
    backend._pools["kv"].store.flush().wait()
    backend.close()
    # In the place of another rank they are hits: what ranks hold is the same.
    os.rename(tmp_path / "tp1of2", tmp_path / "tp0of2")
    backend = attach(options(tmp_path), pool, is_mla_model=True, tp_rank=0, tp_size=2)
    assert backend.batch_exists(keys(2)) == 2
    backend.close()


def test_what_cannot_work_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(kvtier.Invalid, match="dcp_size"):
        attach(options(), mla(), is_mla_model=True, tp_size=2, dcp_size=2, logical_page_size=PAGE)
    with pytest.raises(kvtier.Invalid, match="tp_lcm_size"):
        attach(options(), mha("page_head"), should_split_heads=True, tp_lcm_size=4)
    with pytest.raises(kvtier.Invalid, match="'host'"):
        attach({"interface_v1": 1}, mha())
    with pytest.raises(kvtier.Invalid, match="do you mean 'host'"):
        attach(options(hosts=1), mha())
    unified = mha()
    unified.layout = "page_unified"
    with pytest.raises(kvtier.Invalid, match="cannot address"):
        attach(options(), unified)
    first = attach(options(tmp_path), mha())
    with pytest.raises(kvtier.OpenFailed, match="already open"):
        attach(options(tmp_path), mha())
    first.close()
    attach(options(tmp_path), mha()).close()


def test_damaged_pages_are_misses(tmp_path: Path) -> None:
    pool = mha()
    fill(pool, 1)
    names = keys(12)
    backend = attach(options(tmp_path), pool)
    assert Controller(backend, pool).save(names, range(12))
    backend._pools["kv"].store.flush().wait()
    backend.close()
    want = [content(pool, page) for page in range(12)]
    flipped = flip(tmp_path, every=24_000)
    assert flipped

    fill(pool, 2)
    old = [content(pool, page) for page in range(12)]
    backend = attach(options(tmp_path), pool)
    served = backend.batch_get_v1(names, slots(range(12)))
    assert not all(served)
    for page, done in enumerate(served):
        assert content(pool, page) == (want if done else old)[page]
    backend.close()


def test_a_load_ends_in_time_with_the_pages_that_are_there() -> None:
    pool = mha()
    fill(pool, 1)
    backend = attach(options(timeout=1e-6), pool)
    assert not Controller(backend, pool).save(keys(4), range(4))
    assert backend.batch_exists(keys(4)) == 0
    assert Controller(backend, pool).load(keys(4), range(4)) == 0
    backend.close()


@pytest.mark.parametrize("error", [kvtier.Busy("1024"), kvtier.Closed("closed"), kvtier.Error("anything")])
def test_a_failing_store_is_a_miss_and_never_an_error(error: kvtier.Error, caplog: pytest.LogCaptureFixture) -> None:
    pool = mha()
    backend = attach(options(), pool, {PoolName.SWA: mha()})
    for one in backend._pools.values():
        one.store.close()
        one.store = Failing(error)
    names = keys(2)
    assert backend.batch_exists(names) == 0
    assert not backend.exists(names[0])
    assert backend.batch_get_v1(names, slots([0, 1])) == [False, False]
    assert backend.batch_set_v1(names, slots([0, 1])) == [False, False]
    assert backend.batch_get(names, [pool.get_dummy_flat_data_page()] * 2) == [None, None]
    swa = PoolTransfer(PoolName.SWA, host_indices=slots([0, 1]), keys=names)
    assert backend.batch_exists_v2(names, [swa]).kv_hit_pages == 0
    assert backend.batch_get_v2([swa]) == {PoolName.SWA: [False, False]}
    assert backend.batch_set_v2([swa]) == {PoolName.SWA: [False, False]}
    with pytest.raises(kvtier.Error):
        backend.clear()
    # Each kind once, and not each time.
    told = [record.getMessage().split(" failed")[0] for record in caplog.records if "recomputes" in record.getMessage()]
    assert len(told) == len(set(told)) < sum(backend._complaints.counts().values())
    backend.close()


class Failing:
    """A store of which every call fails."""

    def __init__(self, error: kvtier.Error):
        self._error = error

    def __getattr__(self, name: str):
        def fail(*_args, **_kwargs):
            raise self._error

        return fail


def test_several_pools_agree_on_what_they_can_restore() -> None:
    kv, swa, indexer = mha(), mha(layers=1), mla()
    for at, pool in enumerate((kv, swa, indexer)):
        fill(pool, at)
    backend = attach(options(host="8MiB"), kv, {PoolName.SWA: swa, PoolName.INDEXER: indexer})
    assert {name: stats["block_bytes"] for name, stats in backend.stats().items()} == {
        "kv": 12288,
        "swa": 4096,
        "indexer": 12288,
    }
    names = keys(8)
    assert Controller(backend, kv).save(names, range(8))
    stored = backend.batch_set_v2(
        [
            PoolTransfer(PoolName.SWA, host_indices=slots([0, 1, 2, 3, 4]), keys=names[:3] + names[5:7]),
            PoolTransfer(PoolName.INDEXER, host_indices=slots(range(7)), keys=names[:7]),
        ]
    )
    assert stored == {PoolName.SWA: [True] * 5, PoolName.INDEXER: [True] * 7}

    window = PoolTransfer(PoolName.SWA, keys=names[-2:], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    every = PoolTransfer(PoolName.INDEXER, hit_policy=PoolHitPolicy.ALL_PAGES)
    found = backend.batch_exists_v2(names, [window, every])
    # The window of two pages is there up to the third page, and at the seventh.
    assert found.restorable_prefix_pages == [1, 2, 3, 7]
    assert found.kv_hit_pages == 7
    assert found.extra_pool_hit_pages == {PoolName.KV: 8, PoolName.SWA: 7, PoolName.INDEXER: 7}
    assert backend.batch_exists_v2(names, []).restorable_prefix_pages == list(range(1, 9))
    groups = PoolTransfer(PoolName.DRAFT, hit_policy=PoolHitPolicy.BLOCK_GROUPS)
    assert backend.batch_exists_v2(names, [groups]).kv_hit_pages == 8
    absent = PoolTransfer(PoolName.MAMBA, keys=names[-1:], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    assert backend.batch_exists_v2(names, [absent]).kv_hit_pages == 0

    want = [content(swa, 3), content(swa, 4)]
    fill(swa, 9)
    window.host_indices = slots([10, 11])
    window.keys = names[5:7]
    assert backend.batch_get_v2([window]) == {PoolName.SWA: [True, True]}
    assert [content(swa, 10), content(swa, 11)] == want
    wrong = PoolTransfer(PoolName.SWA, host_indices=slots([1]), keys=names[:2])
    assert backend.batch_get_v2([wrong]) == {PoolName.SWA: [False, False]}
    nowhere = PoolTransfer(PoolName.MAMBA, host_indices=slots([1]), keys=names[:1])
    assert backend.batch_set_v2([nowhere]) == {PoolName.MAMBA: [False]}
    backend.close()


def test_a_pool_that_comes_later_gets_a_store_of_its_own() -> None:
    kv, draft = mha(), mha(layers=1)
    backend = attach(options(), kv)
    backend.register_mem_host_pool_v2(draft, PoolName.DRAFT)
    fill(draft, 1)
    one = PoolTransfer(PoolName.DRAFT, host_indices=slots([0]), keys=keys(1))
    assert backend.batch_set_v2([one]) == {PoolName.DRAFT: [True]}
    assert backend.batch_exists(keys(1)) == 0
    backend.close()


def test_what_was_cleared_is_gone_also_for_the_next_process(tmp_path: Path) -> None:
    pool = mha()
    fill(pool, 1)
    backend = attach(options(tmp_path), pool)
    controller = Controller(backend, pool)
    assert controller.save(keys(4), range(4))
    backend._pools["kv"].store.flush().wait()
    assert backend.clear()
    assert backend.batch_exists(keys(4)) == 0
    assert controller.load(keys(4), range(4)) == 0
    # And it goes on.
    assert controller.save(keys(2), range(2))
    assert backend.batch_exists(keys(4)) == 2
    backend._pools["kv"].store.flush().wait()
    backend.close()
    backend = attach(options(tmp_path), pool)
    assert backend.batch_exists(keys(4)) == 2
    backend.close()


def test_nothing_is_served_across_an_update_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvtier.sglang import scheduler
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    def updated_weights():
        """What all updates of SGLang's do."""
        return SchedulerWeightUpdaterManager._observe_weight_load(SimpleNamespace(metrics_collector=None), "disk")

    def flush():
        UnifiedRadixCache.reset(SimpleNamespace(linker=None, _reset_full=lambda: None))

    pool = mha()
    fill(pool, 1)
    backend = attach(options(tmp_path), pool)
    controller = Controller(backend, pool)
    assert controller.save(keys(4), range(4))
    with updated_weights():
        pass
    assert backend.batch_exists(keys(4)) == 0
    # What SGLang had computed before and stores now is of the old weights, until it forgets it.
    assert controller.save(keys(4), range(4))
    flush()
    assert backend.batch_exists(keys(4)) == 0
    assert controller.save(keys(4), range(4))
    flush()
    assert backend.batch_exists(keys(4)) == 4
    with updated_weights():
        flush()
    assert backend.batch_exists(keys(4)) == 0
    assert controller.load(keys(4), range(4)) == 0
    fill(pool, 2)
    assert controller.save(keys(4), range(4))
    assert controller.load(keys(4), range(4)) == 4
    backend._pools["kv"].store.flush().wait()
    backend.close()
    # Attached again, it still has the new weights; and a process that starts again has the first ones.
    want = [content(pool, page) for page in range(4)]
    backend = attach(options(tmp_path), pool)
    assert Controller(backend, pool).load(keys(4), range(4)) == 4
    assert [content(pool, page) for page in range(4)] == want
    flush()
    assert backend.batch_exists(keys(4)) == 4
    backend.close()
    monkeypatch.setattr(scheduler, "_epoch", "")
    fill(pool, 1)
    want = [content(pool, page) for page in range(4)]
    backend = attach(options(tmp_path), pool)
    assert Controller(backend, pool).load(keys(4), range(4)) == 4
    assert [content(pool, page) for page in range(4)] == want
    backend.close()


def test_pages_of_another_server_come_from_a_remote_store_until_it_hangs(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    pool = mha()
    fill(pool, 1)
    want = [content(pool, page) for page in range(16)]
    prompts = [keys(16, seed) for seed in range(60)]
    with redis(tmp_path) as (server, url):
        remote = {"remotes": [url], "secret_file": str(tmp_path / "secret"), "host": "64MiB"}
        first = attach(options(**remote), pool)
        for names in prompts:
            assert Controller(first, pool).save(names, range(16))
            # They are written behind it, and left out if there are too many.
            time.sleep(0.05)
        first.close()

        fill(pool, 2)
        second = attach(options(**remote), pool)

        def ask(names: list[str]) -> int:
            found = second.batch_exists(names)
            assert Controller(second, pool).load(names[:found], range(found)) == found
            assert [content(pool, page) for page in range(found)] == want[:found]
            # What recomputing would take: it makes the store worth its while. Until it was measured it is not used.
            second.prefilled(0, 16 * PAGE, 1.0)
            return found

        hits = 0
        for names in itertools.islice(itertools.cycle(prompts[:50]), 2000):
            hits += ask(names)
            if hits > 50:
                break
            time.sleep(0.02)
        assert hits > 50
        assert second.stats()["kv"]["loads_admitted"] > 0
        assert not len(second._anchor._pins)

        server.send_signal(signal.SIGSTOP)
        # Nobody has these. They end at the deadline of the rule, and soon they are not asked for any more.
        assert [ask(names) for names in prompts[50:]] == [0] * 10
        # What memory has is served all the same.
        names = keys(4, 99)
        assert Controller(second, pool).save(names, range(4))
        assert second.batch_exists(names) == 4
        second.close()


def test_statistics_are_given_once() -> None:
    pool = mha()
    backend = attach(options(), pool)
    Controller(backend, pool).save(keys(3), range(3))
    Controller(backend, pool).load(keys(3), range(3))
    first = backend.get_stats()
    assert (first.backup_pgs, first.prefetch_pgs) == ([3], [3])
    assert len(first.backup_bandwidth) == len(first.prefetch_bandwidth) == 1
    assert min(first.backup_bandwidth + first.prefetch_bandwidth) > 0
    second = backend.get_stats()
    assert (second.backup_pgs, second.prefetch_pgs, second.prefetch_bandwidth) == ([], [], [])
    backend.close()
    quiet = attach(options(), pool, enable_storage_metrics=False)
    assert quiet.get_stats() is None
    quiet.close()
    quiet.close()


def test_the_factory_of_sglang_makes_it() -> None:
    from sglang.srt.mem_cache.storage import StorageBackendFactory

    extra = options() | {"backend_name": "kvtier", "module_path": "kvtier.sglang", "class_name": "KvtierStorage"}
    given = config(json.loads(json.dumps(extra)))
    backend = StorageBackendFactory.create_backend("dynamic", given, mha())
    assert isinstance(backend, KvtierStorage)
    backend.close()
