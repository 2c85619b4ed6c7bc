"""Loads under way, as SGLang's pools wait for them: layer by layer, on the GPU where there is one."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvtier._enums import KeyStatus
from kvtier._kvtier import Ticket
from kvtier.errors import Error
from kvtier.sglang.holds import Hold
from kvtier.sglang.part import Part

_log = logging.getLogger("kvtier.sglang")


@dataclass(slots=True)
class Load:
    """The loads of one batch of requests."""

    tickets: list[tuple[Part, Sequence[Ticket]]]
    holds: list[Hold]
    """What keeps the pages in host memory."""
    doomed: bool = False
    """Something was not even started."""
    waited: set[tuple[int, int | None]] = field(default_factory=set)
    """Layers that were waited for, and by which stream: pools ask for keys and for values."""

    def wait_layer(self, layer: int, stream: int | None, timeout: float) -> None:
        """Returns when a layer is in the device's pools, or lets the stream wait for it.

        Raises `kvtier.Error` if it will not be.
        """
        if (layer, stream) in self.waited:
            return
        for part, tickets in self.tickets:
            last = part.pages.last.get(layer)
            if last is None:
                continue
            for ticket in tickets:
                if stream is None:
                    ticket.wait_layer(last, timeout)
                else:
                    ticket.hold_layer(last, stream, timeout)
        self.waited.add((layer, stream))

    def finish(self) -> bool:
        """Waits until nothing writes to the device's pools any more. True if everything is there."""
        landed = not self.doomed
        for _, tickets in self.tickets:
            for ticket in tickets:
                # Every operation has a limit of its own; before that its blocks may be written.
                ticket.wait()
                landed &= all(status == KeyStatus.DONE for status in ticket.statuses())
                ticket.release()
        for hold in self.holds:
            hold.release()
        return landed


class LayerCounter:
    """What SGLang's pools ask before a layer's cache is read.

    Like SGLang's own, it does not raise into the forward pass: `finish` tells of the failure, and the scheduler drops
    the output of the requests.
    """

    def __init__(self, timeout: float, stream: Callable[[], int | None]) -> None:
        self.producer_index = -1
        self.consumer_index = -1
        self._loads: dict[int, Load] = {}
        self._timeout = timeout
        self._stream = stream

    def begin(self, load: Load) -> int:
        """Takes a load on, and says its number."""
        self.producer_index += 1
        self._loads[self.producer_index] = load
        return self.producer_index

    def set_consumer(self, index: int) -> None:
        """The load that the next forward pass depends on; none below 0."""
        self.consumer_index = index

    def wait_until(self, threshold: int) -> None:
        """Waits for a layer of the load that the forward pass depends on."""
        load = self._loads.get(self.consumer_index)
        if load is None or load.doomed:
            return
        try:
            load.wait_layer(threshold, self._stream(), self._timeout)
        except Error as error:
            # What failed is known when all is over; nothing more has to be waited for.
            load.doomed = True
            _log.warning("kvtier: layer %d of a load did not arrive: %s", threshold, error)

    def finish(self, index: int) -> bool:
        """Waits for the end of a load. True if everything is there, or there is no such load."""
        load = self._loads.pop(index, None)
        return load is None or load.finish()

    def reset(self) -> None:
        """Waits for the end of all loads, and counts from the start."""
        for index in list(self._loads):
            self.finish(index)
        self.producer_index = -1
        self.consumer_index = -1


@dataclass(slots=True)
class Offload:
    """One offload of SGLang's: pages of several pools."""

    tickets: list[Ticket]
    failed: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing of the device's pools is read any more."""
        return all(ticket.done for ticket in self.tickets)

    def end(self) -> bool:
        """True if every page is in the store. Only once it is done."""
        stored = not self.failed
        for ticket in self.tickets:
            stored &= all(ticket.served())
            ticket.release()
        return stored

    def quiesce(self, end: float) -> None:
        """Returns when the device's pools are not read any more: in time, or after a cancel."""
        for ticket in self.tickets:
            if ticket.wait(max(0.0, end - time.monotonic())) is None:
                ticket.cancel()
                ticket.wait()
            ticket.release()
