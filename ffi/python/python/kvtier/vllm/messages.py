"""What travels between the scheduler and the workers, inside vLLM's own messages.

Look-ups go with the step that vLLM sends to all workers anyhow, and answers come back with its output. A socket of our
own would not be faster, as the scheduler can use an answer no earlier than in its next step; and this way they are in
order with the loads and stores, work over several hosts, and need no thread in the workers.
"""

from dataclasses import dataclass, field

from kvtier.vllm._compat import (
    LoadStoreSpec,
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
    OffloadKey,
)

ABSENT, HOST, NVME, FETCHED = range(4)
"""Where a block is, one byte in an answer. A block that was fetched is pinned in host memory for its request."""


@dataclass(slots=True)
class Ask:
    """Which of a request's blocks are there? The keys are chains, one for each KV group."""

    id: int
    request: str
    chains: list[list[OffloadKey]]


@dataclass(slots=True)
class Orders:
    """From the manager to all ranks, before the jobs of the same step."""

    clear: bool = False
    """Nothing stored before is to be served any more: the weights have changed."""
    asks: list[Ask] = field(default_factory=list)
    release: list[str] = field(default_factory=list)
    """Requests whose pins are not needed any more."""
    passes: list[tuple[int, int, float]] = field(default_factory=list)
    """Prefill that was observed: first token, end, seconds."""

    def __bool__(self) -> bool:
        return bool(self.clear or self.asks or self.release or self.passes)


@dataclass
class StepMetadata(OffloadingConnectorMetadata):
    """vLLM's metadata of one step, and our orders."""

    orders: Orders | None = None
    timed: int | None = None
    """Number of the step, if the scheduler wants to know when it ends."""


@dataclass
class StepResults(OffloadingWorkerMetadata):
    """What vLLM's workers report of a step, and what ours do."""

    answers: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """By ask: how many ranks have answered, and where each key is for all of them."""
    failed_loads: dict[str, bool] = field(default_factory=dict)
    """Requests of which a load failed; whether because its time was over."""
    not_stored: set[OffloadKey] = field(default_factory=set)
    timed: int | None = None

    def aggregate(self, other: object) -> "StepResults":
        """Adds what another rank reports."""
        assert isinstance(other, OffloadingWorkerMetadata)
        both = OffloadingWorkerMetadata.aggregate(self, other)
        merged = StepResults(both.completed_jobs, both.transfer_stats, dict(self.answers), dict(self.failed_loads))
        merged.not_stored, merged.timed = self.not_stored, self.timed
        if isinstance(other, StepResults):
            for ask, (ranks, found) in other.answers.items():
                merged.answers[ask] = add_answer(merged.answers.get(ask), ranks, found)
            for request, late in other.failed_loads.items():
                merged.failed_loads[request] = merged.failed_loads.get(request, False) or late
            merged.not_stored = self.not_stored | other.not_stored
            merged.timed = other.timed if self.timed is None else self.timed
        return merged


def add_answer(so_far: tuple[int, bytes] | None, ranks: int, found: bytes) -> tuple[int, bytes]:
    """A block is there if every rank has it, and as far away as the farthest."""
    if so_far is None:
        return ranks, found
    return so_far[0] + ranks, combine(so_far[1], found)


def combine(one: bytes, other: bytes) -> bytes:
    """Two answers about the same keys.

    >>> list(combine(bytes([ABSENT, HOST, NVME]), bytes([HOST, HOST, HOST])))
    [0, 1, 2]
    """
    return bytes(max(a, b) if a and b else ABSENT for a, b in zip(one, other, strict=True))


@dataclass(slots=True)
class LoadSpec(LoadStoreSpec):
    """Blocks to load for a request."""

    request: str
    keys: list[OffloadKey]


@dataclass(slots=True)
class StoreSpec(LoadStoreSpec):
    """Blocks to store, if nothing was cleared since they were computed."""

    epoch: int
    keys: list[OffloadKey]
