"""The adapter's side of the agreement with LMCache's controllers."""

import contextlib
import os
import select
import threading
import time

import kvtier
import pytest
import torch
from kvtier.lmcache.naming import Shape, name_of
from kvtier.options import StoreOptions
from lmcache.v1.distributed.api import MemoryLayoutDesc
from lmcache.v1.distributed.internal_api import L2AdapterListener

from driver import (
    CHUNK,
    HANG,
    Page,
    adapter,
    content,
    flip,
    key,
    load,
    lookup,
    segments,
    settle,
    store,
    wait_load,
    wait_store,
)


def test_bytes_come_back_and_a_miss_touches_nothing(make):
    tested = make()
    data = [content(chunk) for chunk in range(5)]
    result = store(tested, [key(chunk) for chunk in range(5)], [Page(one) for one in data])
    assert result.is_successful()
    assert result.bytes_transferred() == 5 * CHUNK
    asked = [key(chunk) for chunk in (0, 7, 1, 2, 9, 3, 4)]
    assert lookup(tested, asked) == [True, False, True, True, False, True, True]
    pages = [Page() for _ in asked]
    assert load(tested, asked, pages) == [True, False, True, True, False, True, True]
    assert [pages[at].bytes for at in (0, 2, 3, 5, 6)] == data
    assert pages[1].untouched
    assert pages[4].untouched
    tested.submit_unlock(asked)
    again = store(tested, [key(0)], [Page(data[0])])
    assert again.is_successful()
    assert again.bytes_transferred() == 0, "it was there already"


def test_the_three_descriptors_are_distinct_and_tell_the_truth(make):
    tested = make()
    descriptors = [
        tested.get_store_event_fd(),
        tested.get_lookup_and_lock_event_fd(),
        tested.get_load_event_fd(),
    ]
    assert len(set(descriptors)) == 3

    def readable():
        return [descriptors.index(fd) for fd in select.select(descriptors, [], [], 0)[0]]

    def until(which):
        assert select.select([descriptors[which]], [], [], HANG)[0]
        return readable()

    assert readable() == []
    tested.submit_store_task([key(1)], [Page(content(1)).obj])
    assert until(0) == [0]
    tested.pop_completed_store_tasks()
    assert readable() == []
    task = tested.submit_lookup_and_lock_task([key(1)], {})
    assert until(1) == [1]
    os.eventfd_read(descriptors[1])
    assert tested.query_lookup_and_lock_result(task).test(0)
    task = tested.submit_load_task([key(1)], [Page().obj])
    assert until(2) == [2]
    tested.query_load_result(task)
    assert readable() == []


@pytest.mark.parametrize(
    "other",
    [
        {"salt": "another"},
        {"model": "another"},
        {"rank": 1},
        {"group": 1},
        # The same bytes one after the other, divided in another way.
        {"model": "mode", "salt": "l"},
    ],
)
def test_another_salt_model_rank_or_group_never_hits(make, tmp_path, other):
    tested = make(tmp_path)
    store(tested, [key(1)], [Page(content(1))])
    assert lookup(tested, [key(1, **other)]) == [False]
    page = Page()
    assert load(tested, [key(1, **other)], [page]) == [False]
    assert page.untouched


def test_names_differ_if_anything_does():
    """The catalogue keeps salts apart, and so do the names of blocks."""
    objects = [
        (key(1), Shape(CHUNK, "u8")),
        (key(2), Shape(CHUNK, "u8")),
        (key(1, salt="a"), Shape(CHUNK, "u8")),
        (key(1, model="other"), Shape(CHUNK, "u8")),
        (key(1, rank=1), Shape(CHUNK, "u8")),
        (key(1, group=1), Shape(CHUNK, "u8")),
        (key(1), Shape(CHUNK + 1, "u8")),
        (key(1), Shape(CHUNK, "u16")),
        # The same characters one after the other, divided in another way.
        (key(1, rank=1, group=11), Shape(CHUNK, "u8")),
        (key(1, rank=11, group=1), Shape(CHUNK, "u8")),
        (key(1, salt="12"), Shape(34, "u8")),
        (key(1, salt="1"), Shape(234, "u8")),
    ]
    assert len({name_of(*one) for one in objects}) == len(objects)


def test_another_dtype_or_shape_never_hits(make):
    tested = make()
    store(tested, [key(1)], [Page(content(1), dtype=torch.bfloat16)])
    for other in (
        Page(dtype=torch.float16),
        Page(dtype=torch.uint8),
        Page(size=CHUNK // 2, dtype=torch.bfloat16),
    ):
        assert load(tested, [key(1)], [other]) == [False]
        assert other.untouched
    # What is stored last under a key is what there is.
    store(tested, [key(1)], [Page(content(2), dtype=torch.float16)])
    page = Page(dtype=torch.float16)
    assert load(tested, [key(1)], [page]) == [True]
    assert page.bytes == content(2)
    assert load(tested, [key(1)], [Page(dtype=torch.bfloat16)]) == [False]
    assert tested.get_usage().total_bytes_used == CHUNK


def test_another_tenant_or_revision_never_hits(make, tmp_path):
    one = make(tmp_path, tenant="one", revision="1")
    store(one, [key(1)], [Page(content(1))])
    one.close()
    for more in (
        {"tenant": "two", "revision": "1"},
        {"tenant": "one", "revision": "2"},
    ):
        other = make(tmp_path, **more)
        assert lookup(other, [key(1)]) == [False]
        assert other.get_usage().total_bytes_used == 0
        other.close()


def test_objects_of_several_sizes(make, tmp_path):
    tested = make(tmp_path)
    layouts = {
        group: MemoryLayoutDesc(shapes=[torch.Size([size])], dtypes=[torch.uint8])
        for group, size in enumerate((CHUNK, CHUNK // 4))
    }
    lookup(tested, [key(1, group=0), key(1, group=1)], layouts)
    large, small, last = (
        content("large"),
        content("small", CHUNK // 4),
        content("last", CHUNK // 2),
    )
    keys = [key(1, group=0), key(1, group=1), key(2)]
    assert store(tested, keys, [Page(large), Page(small), Page(last)]).is_successful()
    pages = [Page(), Page(size=CHUNK // 4), Page(size=CHUNK // 2)]
    assert load(tested, keys, pages) == [True] * 3
    assert [page.bytes for page in pages] == [large, small, last]
    sizes = sorted(int(size) for size in tested.report_status()["stores"])
    assert sizes == [CHUNK // 4, CHUNK], "a last chunk has no store of its own"
    assert tested.get_usage().total_bytes_used == CHUNK + CHUNK // 4 + CHUNK
    # One that no block can hold is refused, and the rest of its batch is stored.
    result = store(tested, [key(8), key(9)], [Page(large), Page(size=2 * CHUNK)])
    assert not result.is_successful()
    assert lookup(tested, [key(8), key(9)]) == [True, False]
    assert "objects of a size that has no store" in tested.report_status()["complaints"]
    settle(tested)
    tested.close()
    # All of it over a restart.
    tested = make(tmp_path)
    assert sorted(int(size) for size in tested.report_status()["stores"]) == sizes
    pages = [Page(), Page(size=CHUNK // 4), Page(size=CHUNK // 2)]
    assert load(tested, keys, pages) == [True] * 3
    assert [page.bytes for page in pages] == [large, small, last]


def test_sizes_that_are_listed_are_all_there_are(make, tmp_path):
    tested = make(tmp_path, objects=[CHUNK, "64KiB"])
    assert sorted(int(size) for size in tested.report_status()["stores"]) == [
        64 << 10,
        CHUNK,
    ]
    assert store(tested, [key(1)], [Page(content(1, 4096))]).is_successful()
    assert not store(tested, [key(2)], [Page(size=2 * CHUNK)]).is_successful()


def test_wrong_configurations_are_refused_at_once(make, tmp_path):
    first = make(tmp_path)
    for more, said in [
        ({"hots": "1GiB"}, "hots"),
        ({"nvme": "1 parsec"}, "parsec"),
        ({"objects": "2MiB"}, "objects"),
        ({"remotes": ["redis://host"]}, "remotes"),
        ({}, "another LMCache server"),
    ]:
        with pytest.raises(kvtier.Error, match=said):
            adapter(tmp_path, **more)
    with pytest.raises(kvtier.Error, match="at least 16"):
        adapter(tmp_path / "small", objects=["1MiB"], host="1MiB")
    first.close()
    make(tmp_path)


class Listener(L2AdapterListener):
    """What LMCache's eviction hears."""

    def __init__(self):
        self.keys, self.accessed = {}, []

    def on_l2_keys_stored(self, keys, sizes):
        self.keys.update(zip(keys, sizes, strict=True))

    def on_l2_keys_accessed(self, keys):
        self.accessed += keys

    def on_l2_keys_deleted(self, keys):
        for one in keys:
            del self.keys[one]


def test_usage_deletion_and_what_listeners_hear(make, tmp_path):
    tested, listener = make(tmp_path), Listener()
    tested.register_listener(listener)
    keys = [key(chunk, salt) for salt in ("", "a", "b") for chunk in range(4)]
    store(tested, keys, [Page(content(one)) for one in keys])
    usage = tested.get_usage()
    assert usage.total_bytes_used == 12 * CHUNK
    assert usage.total_capacity_bytes == 64 << 20
    assert dict(usage.bytes_by_cache_salt) == {
        "": 4 * CHUNK,
        "a": 4 * CHUNK,
        "b": 4 * CHUNK,
    }
    assert listener.keys == dict.fromkeys(keys, CHUNK)
    load(tested, keys[:2], [Page(), Page()])
    assert listener.accessed == keys[:2]
    tested.delete([key(chunk, "a") for chunk in range(4)] + [key(99)])
    assert lookup(tested, keys) == [True] * 4 + [False] * 4 + [True] * 4
    assert dict(tested.get_usage().bytes_by_cache_salt) == {
        "": 4 * CHUNK,
        "b": 4 * CHUNK,
    }
    assert set(listener.keys) == set(keys[:4] + keys[8:])
    page = Page()
    assert load(tested, [key(1, "a")], [page]) == [False]
    assert page.untouched
    settle(tested)
    tested.close()
    # Usage, and what eviction knows, over a restart; what was deleted stays so.
    tested, again = make(tmp_path), Listener()
    assert dict(tested.get_usage().bytes_by_cache_salt) == {
        "": 4 * CHUNK,
        "b": 4 * CHUNK,
    }
    tested.register_listener(again)
    assert again.keys == dict.fromkeys(keys[:4] + keys[8:], CHUNK)
    assert lookup(tested, [key(1, "a")]) == [False]


def test_what_is_being_written_is_deleted_too(make, tmp_path):
    """At once for LMCache, and from memory and NVMe when the write has ended."""
    tested = make(tmp_path)
    in_use = 0
    for start in range(0, 400, 4):
        keys = [key(chunk) for chunk in range(start, start + 4)]
        store(tested, keys, [Page(content(one)) for one in keys])
        tested.delete(keys)
        in_use = tested.report_status()["deleted_but_in_use"]
        assert lookup(tested, keys) == [False] * 4
        if in_use:
            break
    assert in_use, "nothing was being written: the test shows nothing"
    assert tested.get_usage().total_bytes_used == 0
    # Stored again, an object stays, whatever was to become of the one before it.
    store(tested, keys[:1], [Page(content(keys[0]))])
    settle(tested)
    assert tested.report_status()["deleted_but_in_use"] == 0
    assert lookup(tested, keys) == [True, False, False, False]
    (held,) = tested.report_status()["stores"].values()
    assert held["host_used"] == 1
    assert held["nvme_used"] == 1


def test_what_is_locked_is_not_deleted(make):
    tested = make()
    store(tested, [key(1), key(2)], [Page(content(1)), Page(content(2))])
    assert lookup(tested, [key(1)]) == [True]
    assert lookup(tested, [key(1)]) == [True]
    assert lookup(tested, [key(2)]) == [True]
    tested.submit_unlock([key(2), key(77)])
    tested.delete([key(1), key(2)])
    assert tested.get_usage().total_bytes_used == CHUNK
    page = Page()
    assert load(tested, [key(1)], [page]) == [True]
    assert page.bytes == content(1)
    tested.submit_unlock([key(1)])
    tested.delete([key(1)])
    assert tested.get_usage().total_bytes_used == CHUNK, "it was locked twice"
    tested.submit_unlock([key(1)])
    tested.delete([key(1)])
    assert tested.get_usage().total_bytes_used == 0
    # Unlocking more often than locking does no harm.
    tested.submit_unlock([key(1)] * 5)


def test_a_lock_keeps_an_object_in_memory(make):
    """There is no NVMe: what memory has no room for is gone, except what is locked."""
    tested = make(host="16MiB")
    locked = [key(chunk) for chunk in range(4)]
    store(tested, locked, [Page(content(one)) for one in locked])
    assert lookup(tested, locked) == [True] * 4
    for round_ in range(10):
        store(
            tested,
            [key(100 + round_ * 16 + at) for at in range(16)],
            [Page(content("other"))] * 16,
        )
    pages = [Page() for _ in locked]
    assert load(tested, locked, pages) == [True] * 4
    assert [page.bytes for page in pages] == [content(one) for one in locked]
    tested.submit_unlock(locked)
    assert tested.report_status()["pins"] == 0
    for round_ in range(10):
        store(
            tested,
            [key(500 + round_ * 16 + at) for at in range(16)],
            [Page(content("other"))] * 16,
        )
    assert lookup(tested, locked) == [False] * 4
    # What kvtier dropped by itself is not in the usage, although nobody looks it up.
    assert tested.get_usage().total_bytes_used <= 2 * (16 << 20)


def test_more_locks_than_memory_can_pin(make, tmp_path):
    tested = make(tmp_path, host="8MiB", nvme="64MiB")
    keys = [key(chunk) for chunk in range(100)]
    for start in range(0, 100, 20):
        some = keys[start : start + 20]
        assert store(tested, some, [Page(content(one)) for one in some]).is_successful()
    assert lookup(tested, keys) == [True] * 100
    for start in range(0, 100, 20):
        some = keys[start : start + 20]
        pages = [Page() for _ in some]
        assert load(tested, some, pages) == [True] * 20, "what is not pinned is read from NVMe"
        assert [page.bytes for page in pages] == [content(one) for one in some]
    # And others can be stored all the while.
    assert store(tested, [key(1000)], [Page(content(1000))]).is_successful()
    tested.submit_unlock(keys)
    assert tested.report_status()["pins"] == 0
    assert tested.report_status()["locked_objects"] == 0


def test_a_listing_has_every_object_once(make):
    tested = make()
    keys = [key(chunk, model=model) for chunk in range(7) for model in ("one", "two")]
    store(tested, keys, [Page(content(1))] * len(keys))
    found, cursor = [], None
    while True:
        page = tested.list_l2_keys(model_name="two", page_size=3, cursor=cursor)
        found += [entry.key.to_object_key() for entry in page.entries]
        assert all(entry.size_bytes == CHUNK for entry in page.entries)
        cursor = page.next_page_token
        if cursor is None:
            break
    assert found == [one for one in keys if one.model_name == "two"]


def test_a_flipped_bit_on_nvme_is_a_miss_and_heals(make, tmp_path):
    tested = make(tmp_path)
    keys = [key(chunk) for chunk in range(4)]
    store(tested, keys, [Page(content(one)) for one in keys])
    settle(tested)
    tested.close()
    assert flip(tmp_path, content(keys[1])[:4096]) == 1
    tested = make(tmp_path)
    lookup(tested, keys)
    pages = [Page() for _ in keys]
    assert load(tested, keys, pages) == [True, False, True, True]
    assert pages[1].untouched
    assert [pages[at].bytes for at in (0, 2, 3)] == [content(keys[at]) for at in (0, 2, 3)]
    tested.submit_unlock(keys)
    assert lookup(tested, keys) == [True, False, True, True], "it is known to be gone"
    assert tested.get_usage().total_bytes_used == 3 * CHUNK
    assert store(tested, [keys[1]], [Page(content(keys[1]))]).is_successful()
    page = Page()
    assert load(tested, [keys[1]], [page]) == [True]
    assert page.bytes == content(keys[1])


def test_segments_that_are_cut_or_swapped_are_never_wrong_bytes(make, tmp_path):
    tested = make(tmp_path, nvme="32MiB")
    keys = [key(chunk) for chunk in range(60)]
    for start in range(0, 60, 20):
        some = keys[start : start + 20]
        store(tested, some, [Page(content(one)) for one in some])
    settle(tested)
    tested.close()
    files = segments(tmp_path)
    used = [file for file in files if any(content(one)[:64] in file.read_bytes() for one in keys)]
    assert len(used) >= 3
    first, second = used[0].read_bytes(), used[1].read_bytes()
    used[0].write_bytes(second)
    used[1].write_bytes(first)
    os.truncate(used[2], used[2].stat().st_size // 2)
    tested = make(tmp_path, nvme="32MiB")
    pages = [Page() for _ in keys]
    for one, page, loaded in zip(keys, pages, load(tested, keys, pages), strict=True):
        assert page.bytes == content(one) if loaded else page.untouched


def test_a_damaged_journal_costs_only_misses(make, tmp_path):
    tested = make(tmp_path)
    keys = [key(chunk) for chunk in range(8)]
    store(tested, keys, [Page(content(one)) for one in keys])
    settle(tested)
    tested.close()
    journal = tmp_path / "objects.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    damaged = next(line for line in lines if key(2).chunk_hash.hex().encode() in line)
    lines[lines.index(damaged)] = damaged.replace(b"model", b"m0del")
    # A crash tore the last record.
    journal.write_bytes(b"".join(lines)[:-9])
    tested = make(tmp_path)
    found = lookup(tested, keys)
    assert found.count(False) == 2
    assert not found[2]
    assert tested.get_usage().total_bytes_used == 6 * CHUNK
    pages = [Page() for _ in keys]
    assert load(tested, keys, pages) == found
    assert all(page.bytes == content(one) for one, page, hit in zip(keys, pages, found, strict=True) if hit)
    # What is stored again is there again, without being written again.
    result = store(tested, keys, [Page(content(one)) for one in keys])
    assert result.is_successful()
    assert result.bytes_transferred() == 0
    tested.close()
    journal.write_bytes(os.urandom(4096))
    tested = make(tmp_path)
    assert lookup(tested, keys) == [False] * 8


class Elsewhere:
    """Memory that no address leads to."""

    raw_tensor = None

    def __getattr__(self, name):
        raise NotImplementedError(name)


def test_memory_of_another_kind_is_refused_and_the_rest_of_the_batch_is_not(make):
    tested = make()
    result = tested.submit_store_task([key(1), key(2)], [Page(content(1)).obj, Elsewhere()])
    assert not wait_store(tested, result).is_successful()
    assert lookup(tested, [key(1), key(2)]) == [True, False]
    page = Page()
    assert wait_load(tested, tested.submit_load_task([key(1), key(1)], [Elsewhere(), page.obj]), 2) == [False, True]
    assert page.bytes == content(1)


def test_the_same_object_twice_in_a_batch(make, tmp_path):
    tested = make(tmp_path)
    keys = [key(1), key(2), key(1)]
    assert store(tested, keys, [Page(content(one)) for one in keys]).is_successful()
    assert lookup(tested, keys) == [True] * 3
    pages = [Page() for _ in keys]
    assert load(tested, keys, pages) == [True] * 3
    assert [page.bytes for page in pages] == [content(one) for one in keys]
    assert tested.get_usage().total_bytes_used == 2 * CHUNK
    tested.delete(keys)
    tested.submit_unlock(keys)
    tested.delete(keys)
    assert tested.get_usage().total_bytes_used == 0


class Late:
    """A ticket whose operation ends when the test says so."""

    def __init__(self, start):
        self._start, self._ticket = start, None

    def end(self):
        self._ticket = self._start()

    def wait(self):
        self._ticket.wait()

    def statuses(self):
        return self._ticket.statuses()

    def release(self):
        self._ticket.release()


class Hung:
    """A store whose loads do not end by themselves."""

    def __init__(self, real):
        self._real, self.late = real, []

    def __getattr__(self, name):
        return getattr(self._real, name)

    def get(self, *args, **more):
        self.late.append(Late(lambda: self._real.get(*args, **more)))
        return self.late[-1]


@pytest.fixture
def hung(monkeypatch):
    """The stores that are opened, whose loads end when the test says so."""
    opened = []
    real_open = StoreOptions.open

    def open_hung(*args, **more):
        opened.append(Hung(real_open(*args, **more)))
        return opened[-1]

    monkeypatch.setattr(StoreOptions, "open", open_hung)
    return opened


def test_a_task_that_ends_while_another_is_asked_for_is_announced_again(make, hung):
    """LMCache reads the descriptor, asks for its tasks one after the other, and waits for the descriptor again."""
    tested = make()
    store(tested, [key(1), key(2)], [Page(content(1)), Page(content(2))])
    descriptor = tested.get_load_event_fd()
    first, second = (tested.submit_load_task([key(chunk)], [Page().obj]) for chunk in (1, 2))
    assert tested.query_load_result(first) is None
    # Both end between the two questions.
    for late in hung[0].late:
        late.end()
        late.wait()
    assert tested.query_load_result(second).test(0)
    assert select.select([descriptor], [], [], 0)[0], "nobody would ask for the first again"
    os.eventfd_read(descriptor)
    assert tested.query_load_result(first).test(0)
    assert not select.select([descriptor], [], [], 0)[0]


def test_a_store_that_hangs_holds_up_nothing_else(make, hung):
    tested = make()
    store(tested, [key(1)], [Page(content(1))])
    page = Page()
    late = tested.submit_load_task([key(1)], [page.obj])
    for chunk in range(2, 40):
        assert store(tested, [key(chunk)], [Page(content(chunk))]).is_successful()
        assert lookup(tested, [key(chunk), key(1)]) == [True, True]
        tested.submit_unlock([key(chunk), key(1)])
        tested.delete([key(chunk)])
    assert tested.query_load_result(late) is None
    assert page.untouched
    hung[0].late[0].end()
    assert wait_load(tested, late, 1) == [True]
    assert page.bytes == content(1)
    assert tested.report_status()["tasks_under_way"] == {
        "store": 0,
        "lookup": 0,
        "load": 0,
    }


def test_back_pressure_is_a_miss_and_a_failed_store(make):
    tested = make()
    store(tested, [key(1)], [Page(content(1))])
    shelf = next(iter(tested._inventory.shelves))
    queue, taken = kvtier.Queue(), []
    with contextlib.suppress(kvtier.Busy):
        while True:
            taken.append(shelf.store.get([], [], queue=queue))
    page = Page()
    assert load(tested, [key(1)], [page]) == [False]
    assert page.untouched
    assert not store(tested, [key(2)], [Page(content(2))]).is_successful()
    assert lookup(tested, [key(1)]) == [True]
    tested.submit_unlock([key(1)])
    for ticket in taken:
        ticket.wait()
        ticket.release()
    queue.drain(2048)
    assert load(tested, [key(1)], [page]) == [True]


def test_it_is_called_from_several_threads(make, tmp_path):
    """The store controller, the prefetch controller and the eviction controller, each in its thread."""
    tested, failures = make(tmp_path, host="16MiB", nvme="64MiB"), []
    until = time.monotonic() + 4

    def stores():
        round_ = 0
        while time.monotonic() < until:
            some = [key((round_ * 7 + at) % 80) for at in range(6)]
            store(tested, some, [Page(content(one)) for one in some])
            round_ += 1

    def loads():
        round_ = 0
        while time.monotonic() < until:
            some = [key((round_ * 5 + at) % 80) for at in range(8)]
            found = lookup(tested, some)
            hits = [one for one, hit in zip(some, found, strict=True) if hit]
            pages = [Page() for _ in hits]
            for one, page, hit in zip(hits, pages, load(tested, hits, pages), strict=True):
                assert page.bytes == content(one) if hit else page.untouched
            tested.submit_unlock(hits)
            round_ += 1

    def evicts():
        round_ = 0
        while time.monotonic() < until:
            tested.delete([key((round_ * 11) % 80)])
            usage = tested.get_usage()
            assert usage.total_bytes_used == sum(usage.bytes_by_cache_salt.values()) <= 80 * CHUNK
            round_ += 1

    def guarded(what):
        try:
            what()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(what,)) for what in (stores, loads, evicts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    status = tested.report_status()
    assert status["locked_objects"] == status["pins"] == 0


def test_closing_twice_and_with_work_under_way(make, tmp_path):
    tested = make(tmp_path)
    keys, pages = (
        [key(chunk) for chunk in range(32)],
        [Page(content(chunk)) for chunk in range(32)],
    )
    tested.submit_store_task(keys, [page.obj for page in pages])
    tested.submit_lookup_and_lock_task(keys, {})
    tested.close()
    tested.close()
    assert not tested.report_status()["is_healthy"]
    # What LMCache may still call is a miss.
    assert lookup(tested, keys) == [False] * 32
    tested.submit_unlock(keys)
    tested.delete(keys)
    assert load(tested, keys, [Page() for _ in keys]) == [False] * 32
