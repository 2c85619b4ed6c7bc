"""The tiers of one rank: its stores, and the paged tensors that are registered with them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import kvtier
from kvtier.complaints import Complaints
from kvtier.options import StoreOptions
from kvtier.vllm._compat import OffloadKey, get_offload_group_idx, init_logger
from kvtier.vllm.fetch import Fetch
from kvtier.vllm.messages import ABSENT, HOST, Ask, Orders, combine
from kvtier.vllm.parts import Part

_OF_ENGINE: dict[str, "Rank"] = {}
"""The ranks of this process by engine: with one rank, vLLM's scheduler usually is in the same process."""


@dataclass(slots=True)
class Tier:
    """One store and its pool."""

    part: Part
    store: kvtier.Store
    pool: kvtier.Pool


@dataclass(frozen=True, slots=True)
class Group:
    """What decides which blocks of a KV group a request needs."""

    tokens_per_block: int
    window: int | None
    """Blocks that are looked back at; none for all."""


@dataclass
class Rank:
    """See the module's head. Used by one thread at a time."""

    engine: str
    options: StoreOptions
    tiers: list[Tier]
    groups: Mapping[int, Group]
    complaints: Complaints = field(default_factory=lambda: Complaints(init_logger(__name__), "vLLM recomputes"))
    epoch: int = 0
    """How often it was cleared."""
    _to_clear: list[Tier] = field(default_factory=list)
    """Stores that could not be cleared yet. Until they are, nothing is served or stored."""
    _fetches: dict[str, Fetch] = field(default_factory=dict)
    """By request: under way, or done and held for its load."""
    _answers: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _OF_ENGINE[self.engine] = self

    @staticmethod
    def here(engine: str) -> "Rank | None":
        """The rank of an engine if it is in this process."""
        return _OF_ENGINE.get(engine)

    @property
    def fetches(self) -> bool:
        """Whether a look-up may take time: other sources are asked, and weighed against recomputing."""
        return bool(self.options.remotes) or self.options.weigh_nvme

    def obey(self, orders: Orders) -> None:
        """Does what the manager says."""
        if orders.clear:
            self.clear()
        for request in orders.release:
            self.release(request)
        if orders.asks:
            self.ask(orders.asks)
        for start, end, seconds in orders.passes:
            for tier in self.tiers:
                with self.surviving("observe"):
                    tier.store.observed_prefill(start, end, seconds)

    def ask(self, asks: Sequence[Ask]) -> None:
        """Looks up all keys of all asks, with one call for each store."""
        chains = [chain for ask in asks for chain in ask.chains]
        found = self._found(chains)
        first = 0
        for ask in asks:
            here = found[first : first + len(ask.chains)]
            first += len(ask.chains)
            if self.fetches and self.usable and any(at != HOST for chain in here for at in chain):
                self._fetch(ask, here)
            else:
                self._answers[ask.id] = b"".join(here)

    def take_answers(self) -> dict[int, bytes]:
        """Answers since the last call, by ask."""
        for fetch in self._fetches.values():
            if not fetch.answered and (answer := fetch.answer()) is not None:
                self._answers[fetch.ask.id] = answer
                fetch.answered = True
        answers, self._answers = self._answers, {}
        return answers

    def present(self, keys: Sequence[OffloadKey]) -> bytes:
        """Where each key is, of any groups."""
        chains: dict[int, list[OffloadKey]] = {}
        for key in keys:
            chains.setdefault(get_offload_group_idx(key), []).append(key)
        found = {group: iter(at) for group, at in zip(chains, self._found(list(chains.values())), strict=True)}
        return bytes(next(found[get_offload_group_idx(key)]) for key in keys)

    def release(self, request: str) -> None:
        """Ends what is fetched, or held, for a request."""
        fetch = self._fetches.pop(request, None)
        if fetch is not None:
            fetch.end()

    def clear(self) -> None:
        """Serves nothing any more that was stored before."""
        self.epoch += 1
        for request in list(self._fetches):
            self.release(request)
        self._answers.clear()
        self._to_clear = list(self.tiers)
        self._cleared()

    def _cleared(self) -> bool:
        """Whether all that had to be cleared is."""
        while self._to_clear:
            with self.surviving("clear"):
                self._to_clear[-1].store.clear()
                self._to_clear.pop()
                continue
            return False
        return True

    @property
    def usable(self) -> bool:
        """False while stores may serve what should have been cleared."""
        return self._cleared()

    def of_group(self, group: int) -> Iterator[tuple[int, Tier]]:
        """The stores that hold a group's blocks."""
        return ((at, tier) for at, tier in enumerate(self.tiers) if group in tier.part.groups)

    def close(self) -> None:
        """Closes pools and stores: vLLM's tensors are not touched any more."""
        if _OF_ENGINE.get(self.engine) is self:
            del _OF_ENGINE[self.engine]
        for request in list(self._fetches):
            self.release(request)
        for tier in self.tiers:
            with self.surviving("close"):
                tier.pool.close()
                tier.store.close()

    @contextlib.contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """What fails in kvtier is a miss for vLLM, and is said now and then."""
        try:
            yield
        except kvtier.Error as error:
            self.complaints.note(f"{what} failed", error)

    def _found(self, chains: Sequence[Sequence[OffloadKey]]) -> list[bytes]:
        found: list[bytes | None] = [None] * len(chains)
        if not self.usable:
            return [bytes(len(chain)) for chain in chains]
        groups = [get_offload_group_idx(chain[0]) if chain else -1 for chain in chains]
        for tier in self.tiers:
            mine = [at for at, group in enumerate(groups) if group in tier.part.groups]
            if not mine:
                continue
            places = bytes(sum(len(chains[at]) for at in mine))
            with self.surviving("look-up"):
                places = tier.store.exists([key for at in mine for key in chains[at]])
            first = 0
            for at in mine:
                here = places[first : first + len(chains[at])]
                first += len(here)
                before = found[at]
                found[at] = here if before is None else combine(before, here)
        # A pipeline rank may have no layer of a group, and then has all that it needs of it.
        nothing = [bytes([HOST if group in self.groups else ABSENT]) for group in groups]
        return [none * len(chain) if at is None else at for at, none, chain in zip(found, nothing, chains, strict=True)]

    def _fetch(self, ask: Ask, found: list[bytes]) -> None:
        self.release(ask.request)
        self._fetches[ask.request] = Fetch(ask, found, self.groups, self._pin)

    def _pin(self, chain: Sequence[OffloadKey]) -> list[kvtier.Ticket]:
        """One ticket for each store of the chain's group; none if one of them refused."""
        tickets: list[kvtier.Ticket] = []
        try:
            for _, tier in self.of_group(get_offload_group_idx(chain[0])):
                tickets.append(tier.store.pin(chain, chained=True, timeout=self.options.timeout))
        except kvtier.Error as error:
            self.complaints.note("prefetch failed", error)
            for ticket in tickets:
                ticket.cancel()
            tickets.clear()
        return tickets


def open_rank(
    engine: str,
    options: StoreOptions,
    parts: Sequence[Part],
    groups: Mapping[int, Group],
    streams: Sequence[int],
    open_store: Callable[[int, Part, float], kvtier.Store],
) -> Rank:
    """Opens a store for each part and registers its tensors. `open_store` gets the part's number and its share."""
    weights = [part.block_bytes * len(part.groups) for part in parts]
    tiers: list[Tier] = []
    try:
        for at, part in enumerate(parts):
            store = open_store(at, part, weights[at] / sum(weights))
            try:
                tiers.append(Tier(part, store, part.register(store, streams)))
            except BaseException:
                store.close()
                raise
    except BaseException:
        for tier in tiers:
            tier.pool.close()
            tier.store.close()
        raise
    return Rank(engine, options, tiers, groups)
