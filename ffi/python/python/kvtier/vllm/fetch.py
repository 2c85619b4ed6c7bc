"""Bringing what a request needs from slow stores to host memory, and holding it there.

```text
 full attention: the chain, as far as loading beats recomputing ─► its end ─► windows: the blocks before that end
```
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kvtier import Summary, Ticket
from kvtier.vllm._compat import OffloadKey, get_offload_group_idx
from kvtier.vllm.messages import FETCHED, HOST, Ask

if TYPE_CHECKING:
    from kvtier.vllm.rank import Group


class Fetch:
    """One request's blocks, under way or held until `end`."""

    def __init__(
        self,
        ask: Ask,
        found: Sequence[bytes],
        groups: "Mapping[int, Group]",
        pin: Callable[[Sequence[OffloadKey]], list[Ticket]],
    ) -> None:
        """`found` is what host memory and NVMe have, for each chain; `pin` fetches a chain from every store of it."""
        self.ask = ask
        self.answered = False
        self._found = list(found)
        self._pin = pin
        self._groups = [groups.get(get_offload_group_idx(chain[0])) if chain else None for chain in ask.chains]
        self._held: list[Ticket] = []
        self._under_way: list[tuple[int, int, list[Ticket]]] = []
        """Which chain, the first key that is fetched, and its tickets."""
        self._windows_begun = False
        for at, group in enumerate(self._groups):
            whole = group is not None and group.window is None
            if whole and any(place != HOST for place in found[at]) and not self._begin(at, 0, len(found[at])):
                # What NVMe has was not weighed, so that it is not loaded.
                self._found[at] = bytes(place if place == HOST else 0 for place in found[at])

    def answer(self) -> bytes | None:
        """Where each key of the ask is, once everything has been fetched that will be."""
        if not self._arrived():
            return None
        if not self._windows_begun:
            self._windows_begun = True
            self._begin_windows()
            if not self._arrived():
                return None
        return b"".join(self._found)

    def end(self) -> None:
        """Lets go of what is held and gives up the rest."""
        for _, _, tickets in self._under_way:
            self._held += tickets
        self._under_way.clear()
        for ticket in self._held:
            ticket.cancel()
            ticket.release()
        self._held.clear()

    def _begin(self, at: int, first: int, last: int) -> bool:
        tickets = self._pin(self.ask.chains[at][first:last])
        if tickets:
            self._under_way.append((at, first, tickets))
        return bool(tickets)

    def _begin_windows(self) -> None:
        """A window matters only where the full layers end; vLLM looks there first."""
        ends = [
            len(found.split(bytes(1), 1)[0]) * group.tokens_per_block
            for found, group in zip(self._found, self._groups, strict=True)
            if group is not None and group.window is None
        ]
        for at, group in enumerate(self._groups):
            if group is None or group.window is None:
                continue
            chain = self._found[at]
            last = min(min(ends) // group.tokens_per_block, len(chain)) if ends else len(chain)
            first = max(0, last - group.window)
            # One more, as the end may lie inside a block; by itself, as whoever stored the window may not have had it.
            for begin, end in ((first - 1, first), (first, last)):
                if begin >= 0 and any(place != HOST for place in chain[begin:end]):
                    self._begin(at, begin, end)

    def _arrived(self) -> bool:
        ends: list[list[Summary]] = []
        for _, _, tickets in self._under_way:
            ends.append([end for ticket in tickets if (end := ticket.poll()) is not None])
            if len(ends[-1]) < len(tickets):
                return False
        for (at, first, tickets), ended in zip(self._under_way, ends, strict=True):
            last = first + min(end.prefix for end in ended)
            found = self._found[at]
            fetched = bytes(place or FETCHED for place in found[first:last])
            # Of a chain, nothing is loaded behind what was fetched. A window is none.
            group = self._groups[at]
            rest = found[last:] if group is not None and group.window is not None else bytes(len(found) - last)
            self._found[at] = found[:first] + fetched + rest
            self._held += tickets
        self._under_way.clear()
        return True
