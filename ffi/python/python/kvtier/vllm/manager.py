"""Answers vLLM's scheduler: which blocks are there, what to load, what to store."""

import time
from collections.abc import Collection, Iterable, Sequence

from kvtier.options import StoreOptions
from kvtier.vllm import metrics
from kvtier.vllm._compat import (
    CacheHitSource,
    LookupResult,
    Medium,
    OffloadingConfig,
    OffloadingConnectorStats,
    OffloadingEvent,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
)
from kvtier.vllm.lookups import Lookups
from kvtier.vllm.messages import HOST, NVME, Ask, LoadSpec, Orders, StepResults, StoreSpec
from kvtier.vllm.rank import Rank

_SOURCES = {HOST: CacheHitSource.HOST, NVME: CacheHitSource.DISK}


class KvtierManager(OffloadingManager):
    """vLLM's manager, in the scheduler's process.

    With one rank in the same process it asks the stores themselves, which takes microseconds. Ranks elsewhere get
    orders with the next step, and until their answers are there look-ups are to be retried.
    """

    def __init__(self, config: OffloadingConfig, options: StoreOptions) -> None:
        self._config = config
        self._options = options
        self._fetches = bool(options.remotes) or options.weigh_nvme
        # An answer may take as long as a load, and then some steps.
        patience = options.timeout + 5.0
        self._lookups = Lookups(config.parallel.world_size, self._fetches, patience)
        self._orders = Orders()
        self._epoch = 0
        self._requests: set[str] = set()
        """Those that are not over."""
        self._failed: set[str] = set()
        """Requests of which a load failed: they are not loaded again."""
        self._paused_until = 0.0
        """A store that hangs would cost each request its deadline; so after a load ran out of time, none is tried for
        as long as it took."""
        self._events: list[OffloadingEvent] | None = [] if config.enable_kv_cache_events else None
        self._not_stored: set[OffloadKey] = set()

    # What the connector tells.

    def expect(self, request: str, chains: Sequence[Sequence[OffloadKey]]) -> None:
        """A request has come."""
        self._lookups.want(request, chains)

    def look(self, request: str, first: int, chains: Sequence[Sequence[OffloadKey]]) -> None:
        """A request has its turn: makes sure that its keys behind `first` tokens are asked about."""
        if request in self._failed or time.monotonic() < self._paused_until:
            self._forget(request)
            return
        if asks := self._lookups.need(request, first, chains):
            self._ask(asks)
        elif (rank := self._rank()) is not None:
            self._hear(rank)

    def take_orders(self) -> Orders | None:
        """For the ranks, with this step."""
        if self._rank() is not None or not self._orders:
            return None
        orders, self._orders = self._orders, Orders()
        return orders

    def observed(self, passes: Iterable[tuple[int, int, float]]) -> None:
        """Prefill of so many tokens took so long."""
        self._order(Orders(passes=list(passes)))

    def hear(self, results: StepResults) -> None:
        """What the ranks report with a step's output."""
        for ask, (ranks, found) in results.answers.items():
            self._lookups.answered(ask, ranks, found)
        for request, late in results.failed_loads.items():
            if request in self._requests:
                self._failed.add(request)
            if late:
                self._paused_until = time.monotonic() + self._options.timeout
        if self._events is not None:
            self._not_stored |= results.not_stored

    # What vLLM's scheduler asks.

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """From what was answered; never waits."""
        return self._lookups.result(req_context.req_id, key)

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        """Where a block that was found is."""
        place = self._lookups.place(req_context.req_id, key)
        return _SOURCES.get(place, CacheHitSource.EXTERNAL_UNSPECIFIED)

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadSpec:
        """What was fetched for the request is held until `complete_load`."""
        return LoadSpec(req_context.req_id, list(keys))

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """All ranks are through with a load."""
        self._forget(req_context.req_id)

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """All that is not there yet. Ranks elsewhere find out themselves what they have."""
        wanted = list(keys)
        rank = self._rank()
        if rank is not None:
            wanted = [key for key, place in zip(wanted, rank.present(wanted), strict=True) if not place]
        return PrepareStoreOutput(wanted, StoreSpec(self._epoch, wanted), [])

    def complete_store(self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """All ranks are through with a store."""
        if self._events is None:
            return
        if stored := [key for key in keys if key not in self._not_stored]:
            # What is evicted later is not announced: kvtier does that in its own threads.
            self._events.append(OffloadingEvent(stored, Medium.CPU, removed=False))
        self._not_stored.difference_update(keys)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Its keys come from the connector."""
        self._requests.add(req_context.req_id)
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """Also of requests that were aborted: ends what is held for them."""
        self._requests.discard(req_context.req_id)
        self._failed.discard(req_context.req_id)
        self._forget(req_context.req_id)

    def take_events(self) -> Iterable[OffloadingEvent]:
        """What was stored since the last call."""
        if self._events:
            events, self._events = self._events, []
            yield from events

    def has_pending_work(self) -> bool:
        """Orders have to reach the ranks even when no request is scheduled."""
        return self._rank() is None and bool(self._orders)

    def reset_cache(self) -> None:
        """The weights have changed: nothing that was stored, or is being loaded or stored, is used any more."""
        self._epoch += 1
        self._lookups.clear()
        self._not_stored.clear()
        # Those asks and passes are of before.
        self._orders = Orders()
        self._order(Orders(clear=True))

    def get_stats(self) -> OffloadingConnectorStats | None:
        """The look-ups; what the ranks did comes from them."""
        if not self._lookups.asked:
            return None
        stats = OffloadingConnectorStats()
        stats.increase_counter(metrics.name("blocks_asked"), self._lookups.asked)
        stats.increase_counter(metrics.name("blocks_found"), self._lookups.found)
        self._lookups.asked = self._lookups.found = 0
        return stats

    def _rank(self) -> Rank | None:
        """The only rank, if it is in this process."""
        return Rank.here(self._config.engine_id) if self._config.parallel.world_size == 1 else None

    def _ask(self, asks: list[Ask]) -> None:
        self._order(Orders(asks=asks))
        if (rank := self._rank()) is not None:
            self._hear(rank)

    def _hear(self, rank: Rank) -> None:
        for ask, found in rank.take_answers().items():
            self._lookups.answered(ask, 1, found)

    def _forget(self, request: str) -> None:
        if self._lookups.forget(request):
            self._order(Orders(release=[request]))

    def _order(self, orders: Orders) -> None:
        if (rank := self._rank()) is not None:
            rank.obey(orders)
            return
        mine = self._orders
        mine.clear |= orders.clear
        mine.asks += orders.asks
        mine.release += orders.release
        mine.passes += orders.passes
