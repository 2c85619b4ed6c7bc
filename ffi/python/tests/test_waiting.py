"""Waiting: the interpreter is free meanwhile, buffers stay, and nothing queues without bound."""

import _thread
import asyncio
import gc
import select
import signal
import threading
import weakref

import kvtier
import numpy as np
import pytest
from conftest import BLOCK, MIB, page
from kvtier import KeyStatus


def test_a_busy_thread_makes_progress_while_we_wait(slow):
    _, ticket = slow
    count = 0
    waiting = threading.Event()

    def work():
        nonlocal count
        waiting.wait()
        while count < 100_000:
            count += 1
        # Only a thread that runs while the other waits can end the wait: the loads take longer.
        ticket.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    waiting.set()
    summary = ticket.wait()
    assert count == 100_000
    assert summary.done < summary.keys
    assert ticket.statuses()[-1] == KeyStatus.CANCELLED
    thread.join()


def test_waiting_ends_at_its_limit_and_the_operation_goes_on(slow):
    _, ticket = slow
    assert ticket.wait(0.01) is None
    assert ticket.poll() is None
    assert not ticket.done
    assert set(ticket.statuses()) == {KeyStatus.PENDING}


def test_ctrl_c_ends_a_wait(slow, request):
    _, ticket = slow
    # It is ignored in what a shell has started in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    timer = threading.Timer(0.1, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ticket.wait()
    assert not ticket.done
    timer.join()


def test_memory_cannot_be_resized_until_the_end_is_known(store):
    raw = page(1)
    ticket = store.put([b"k"], raw)
    with pytest.raises(BufferError):
        raw.append(0)
    ticket.wait()
    raw.append(0)
    with pytest.raises(kvtier.Invalid):
        store.put([b"other"], raw)
    raw.append(0)


class Page(np.ndarray):
    """Can be watched by a weak reference."""


def test_memory_is_kept_until_the_operation_is_over(store):
    def dropped():
        array = np.zeros(BLOCK, np.uint8).view(Page)
        gone = weakref.ref(array)
        # The ticket goes at once, the array when the operation is over.
        store.put([b"k"], kvtier.Runs([array.ctypes.data], BLOCK, keep=array))
        return gone

    before = [dropped() for _ in range(200)]
    # Each submission lets go of what is over. If one were never let go of, this would not end.
    while any(gone() is not None for gone in before):
        store.pin([b"nothing"]).wait()
        gc.collect()


def test_too_much_under_way_is_refused(store):
    tickets = [store.pin([b"nothing"]) for _ in range(1024)]
    with pytest.raises(kvtier.Busy):
        store.pin([b"nothing"])
    assert store.stats()["busy"] == 1
    for ticket in tickets:
        ticket.wait()
    with pytest.raises(kvtier.Busy):
        store.pin([b"nothing"])
    tickets.pop().release()
    assert store.pin([b"nothing"]).wait().done == 0


def test_answers_that_nobody_collects_are_bounded(store):
    queue = kvtier.Queue()
    for tag in range(1024):
        store.pin([b"nothing"], queue=queue, tag=tag).wait()
    with pytest.raises(kvtier.Busy):
        store.pin([b"nothing"])
    assert [tag for tag, _, _ in queue.drain(100)] == list(range(100))
    assert store.pin([b"nothing"]).wait().keys == 1
    assert len(queue.drain()) == 924
    assert select.select([queue], [], [], 0) == ([], [], [])


def test_a_released_ticket_says_so(store):
    ticket = store.pin([b"nothing"])
    assert "kvtier.Ticket" in repr(ticket)
    ticket.release()
    ticket.release()
    with pytest.raises(kvtier.Invalid, match="released"):
        ticket.poll()


def test_pins_hold_until_they_are_released(store):
    most = store.stats()["host_slots"] // 4
    keys = [b"%d" % i for i in range(most + 1)]
    store.put(keys, [page(i) for i in range(most + 1)]).wait()
    pin = store.pin(keys)
    assert pin.wait().done == most
    assert store.pin(keys[:1]).wait().done == 0
    pin.release()
    assert store.pin(keys[:1]).wait().done == 1


def test_asyncio(slow):
    store, ticket = slow

    async def one(i):
        back = bytearray(MIB)
        stored = await store.put([b"%d" % i], page(i, MIB))
        loaded = await store.get([b"%d" % i], back)
        return stored.done, loaded.done, back == page(i, MIB)

    async def many():
        results = await asyncio.gather(*(one(i) for i in range(20)))
        assert results == [(1, 1, True)] * 20
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ticket, 0.05)
        # Cancelled with the task that waited for it, and awaited again by another.
        assert (await ticket).done < 1 << 20

    asyncio.run(many())
    assert ticket.statuses()[-1] == KeyStatus.CANCELLED
    asyncio.run(many_again(store))


async def many_again(store):
    """Another loop has another watcher."""
    tickets = [store.pin([b"%d" % i]) for i in range(10)]
    assert [(await ticket).done for ticket in tickets] == [1] * 10


def test_threads(store):
    """Many threads, one store: what each stores is what it loads."""
    wrong = []

    def work(me):
        for i in range(50):
            key, back = b"%d/%d" % (me, i), bytearray(BLOCK)
            store.put([key], page(me + i)).wait()
            found = store.get([key], back).wait().done
            if found and back != page(me + i):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
