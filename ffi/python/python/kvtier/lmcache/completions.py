"""One kind of LMCache's tasks: what is under way, what is done, and the descriptor that says so.

The descriptor is that of a `kvtier.Queue`, so nothing stands between kvtier's workers and LMCache's thread. LMCache
reads it before it asks for results, and asks for one task at a time. So whoever asks and finds that other tasks have
ended, too, makes the descriptor readable again: their turn to be asked may have been before.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvtier import Queue, Ticket

R = TypeVar("R")

# Results that LMCache never asks for are those of requests that it gave up.
_MOST_RESULTS = 4096


@dataclass(eq=False, slots=True)
class Task(Generic[R]):
    """Some operations of kvtier, and what their end means."""

    conclude: Callable[[list[Ticket]], R | None]
    """Makes the result, if LMCache waits for one, when all have ended. Called once, without a lock. Does not raise."""
    tickets: list[Ticket] = field(default_factory=list)
    ended: int = 0
    submitted: bool = False


class Completions(Generic[R]):
    """Tasks of one kind. For several threads."""

    def __init__(self) -> None:
        # `None` when it is closed. LMCache may ask for the descriptor then, in order to forget it.
        self._queue: Queue | None = Queue()
        self.fileno = self._queue.fileno()
        self._lock = threading.Lock()
        self._under_way: dict[int, Task[R]] = {}
        self._results: dict[int, R] = {}
        self._last = 0

    def __len__(self) -> int:
        """Tasks that have not ended."""
        return len(self._under_way)

    def submit(self, conclude: Callable[[list[Ticket]], R | None], start: Callable[[Queue, int], list[Ticket]]) -> int:
        """Starts the operations of a task, each announced in the queue under the tag, and returns its number."""
        task = Task(conclude)
        with self._lock:
            self._last += 1
            number = self._last
            self._under_way[number] = task
        # Once it is closed nothing can be started any more, so that queue is never used.
        task.tickets.extend(start(self._queue or Queue(), number))
        with self._lock:
            task.submitted = True
            ended = task.ended == len(task.tickets)
            if ended:
                del self._under_way[number]
        if ended and self._conclude({number: task}):
            self.signal()
        return number

    def collect(self) -> list[int]:
        """Concludes the tasks that have ended. Returns those that have results."""
        concluded: dict[int, Task[R]] = {}
        while finished := self._drain():
            with self._lock:
                for number, _, _ in finished:
                    task = self._under_way.get(number)
                    if task is None:
                        continue
                    task.ended += 1
                    if task.submitted and task.ended == len(task.tickets):
                        concluded[number] = self._under_way.pop(number)
        return self._conclude(concluded)

    def take(self, number: int) -> R | None:
        """The result of a task, once, when it has ended."""
        concluded = self.collect()
        with self._lock:
            result = self._results.pop(number, None)
        if any(other != number for other in concluded):
            self.signal()
        return result

    def take_all(self) -> dict[int, R]:
        """The results that nobody has taken."""
        self.collect()
        with self._lock:
            results, self._results = self._results, {}
        return results

    def signal(self) -> None:
        """Makes the descriptor readable."""
        with self._lock:
            # Afterwards the number may be that of somebody else's file.
            if self._queue is not None:
                os.eventfd_write(self.fileno, 1)

    def close(self) -> None:
        """Gives the descriptor back, and everything that tasks hold. The stores are closed: none is under way."""
        with self._lock:
            self._queue = None
            self._under_way.clear()

    def _drain(self) -> list[tuple[int, int, int]]:
        queue = self._queue
        return [] if queue is None else queue.drain()

    def _conclude(self, tasks: dict[int, Task[R]]) -> list[int]:
        concluded: list[int] = []
        for number, task in tasks.items():
            result = task.conclude(task.tickets)
            for ticket in task.tickets:
                ticket.release()
            if result is None:
                continue
            concluded.append(number)
            with self._lock:
                self._results[number] = result
                if len(self._results) > _MOST_RESULTS:
                    del self._results[next(iter(self._results))]
        return concluded
