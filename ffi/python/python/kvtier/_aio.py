"""Tickets in asyncio: one queue for each loop, whose descriptor the loop watches."""

import asyncio
import itertools
from weakref import WeakKeyDictionary

from kvtier._kvtier import Queue, Summary, Ticket


class _Watcher:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = Queue()
        self._tags = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        loop.add_reader(self._queue.fileno(), self._ready)

    def _ready(self) -> None:
        for tag, _done, _keys in self._queue.drain():
            future = self._waiting.pop(tag)
            if not future.done():
                future.set_result(None)

    async def wait(self, ticket: Ticket) -> None:
        future = asyncio.get_running_loop().create_future()
        tag = next(self._tags)
        self._waiting[tag] = future
        ticket.announce(self._queue, tag)
        await future


_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watcher] = WeakKeyDictionary()


async def wait(ticket: Ticket) -> Summary:
    """What `await ticket` does. A task that is cancelled cancels the operation; its buffers are kept."""
    while (summary := ticket.poll()) is None:
        loop = asyncio.get_running_loop()
        watcher = _watchers.get(loop)
        if watcher is None:
            watcher = _watchers[loop] = _Watcher(loop)
        try:
            await watcher.wait(ticket)
        except asyncio.CancelledError:
            ticket.cancel()
            raise
    return summary
