"""Pages that were looked up and are kept in host memory until they are loaded."""

import threading
import time
from collections.abc import Sequence

from kvtier._kvtier import Ticket

_PATIENCE = 30.0
"""Seconds that pages are kept for a request that does not come, as it was cancelled or is not worth it."""


class Pins:
    """Tickets of pins, each with the keys that were not loaded yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[float, set[str], Ticket]] = []

    def hold(self, keys: Sequence[str], ticket: Ticket) -> None:
        """Keeps a ticket until all of these are loaded, or too much time has passed."""
        if keys:
            with self._lock:
                self._held.append((time.monotonic() + _PATIENCE, set(keys), ticket))
        else:
            ticket.release()

    def loaded(self, keys: Sequence[str]) -> None:
        """These were loaded. Releases what is not needed any more."""
        now = time.monotonic()
        with self._lock:
            kept = []
            for expires, waiting, ticket in self._held:
                waiting.difference_update(keys)
                if waiting and now < expires:
                    kept.append((expires, waiting, ticket))
                else:
                    ticket.release()
            self._held = kept

    def release(self) -> None:
        """Releases all."""
        with self._lock:
            for _, _, ticket in self._held:
                ticket.release()
            self._held = []

    def __len__(self) -> int:
        return len(self._held)
