"""kvtier through its wheel: one store, one call for all keys."""

from __future__ import annotations

import kvtier

from contenders.base import Contender, address

TIMEOUT = 120.0


class Wheel(Contender):
    """The host tier is as large as two sets of blocks, as a host that caches would have it."""

    promise = "host memory has it, and NVMe will"
    checks = "CRC-64 of every byte, identity"
    cold = "opened anew: host tier empty, O_DIRECT"

    def open(self) -> None:
        total = self.size * self.blocks
        self._store = kvtier.Store(
            self.size, 2 * total + 64 * self.size, path=self.directory / "kvtier", nvme_bytes=3 * total + (1 << 30)
        )
        self._source = [(address(run), len(run)) for page in self.source for run in page]
        self._target = [(address(run), len(run)) for page in self.target for run in page]

    def close(self) -> None:
        self._store.close()

    @staticmethod
    def _all(ticket: kvtier.Ticket) -> None:
        summary = ticket.wait()
        if summary is None or summary.done != summary.keys:
            raise RuntimeError(f"{summary}: {sorted(set(ticket.statuses()))}")

    def write(self, keys: list[bytes]) -> None:
        self._all(self._store.put(keys, self._source, timeout=TIMEOUT))

    def read(self, keys: list[bytes]) -> None:
        self._all(self._store.get(keys, self._target, timeout=TIMEOUT))

    def exists(self, keys: list[bytes]) -> int:
        found = self._store.exists(keys)
        return len(found) - found.count(0)

    def sync(self) -> None:
        self._all(self._store.flush(timeout=TIMEOUT))

    def cool(self) -> None:
        self.reopen()
