"""What the scheduler asks and believes, and what is fetched for a request. No engine and no store."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from kvtier.vllm import lookups
from kvtier.vllm._compat import LookupResult
from kvtier.vllm.fetch import Fetch
from kvtier.vllm.lookups import Lookups
from kvtier.vllm.messages import FETCHED, HOST, NVME, Ask
from kvtier.vllm.rank import Group
from vllm.v1.kv_offload.base import make_offload_key

HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY


def chain(group: int, blocks: int, of: int = 0) -> list[bytes]:
    return [make_offload_key(bytes([of, block]) * 16, group) for block in range(blocks)]


def test_an_answer_needs_every_rank_and_what_one_lacks_is_a_miss() -> None:
    asked = Lookups(ranks=2, holds=False, patience=60)
    keys = chain(0, 3)
    (ask,) = asked.need("a", 0, [keys])
    assert asked.result("a", keys[0]) is RETRY
    asked.answered(ask.id, 1, bytes([HOST, HOST, NVME]))
    assert asked.result("a", keys[0]) is RETRY
    asked.answered(ask.id, 1, bytes([NVME, 0, NVME]))
    assert [asked.result("a", each) for each in keys] == [HIT, MISS, HIT]
    assert asked.place("a", keys[0]) == NVME
    assert asked.result("a", chain(0, 1, of=9)[0]) is MISS, "nobody asked"
    assert asked.need("a", 0, [keys]) == [], "the answer is fresh"
    assert (asked.asked, asked.found) == (3, 2)


def test_requests_that_came_together_are_asked_about_together() -> None:
    asked = Lookups(ranks=1, holds=False, patience=60)
    for each in range(3):
        asked.want(str(each), [chain(0, 2, of=each)])
    asked.want("short", [[]])
    asks = asked.need("1", 0, [chain(0, 2, of=1)])
    assert [ask.request for ask in asks] == ["1", "0", "2"]
    assert asked.need("2", 0, [chain(0, 2, of=2)]) == []


@pytest.mark.parametrize("what", ["old", "longer", "earlier"])
def test_an_answer_is_not_believed_for_ever(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Lookups(ranks=1, holds=False, patience=60)
    keys = chain(0, 4)
    (ask,) = asked.need("a", 16, [keys[1:3]])
    asked.answered(ask.id, 1, bytes([HOST, HOST]))
    if what == "old":
        monkeypatch.setattr(lookups, "_FRESH", 0.0)
    first, now = {"old": (16, keys[1:3]), "longer": (16, keys[1:]), "earlier": (0, keys[:3])}[what]
    (again,) = asked.need("a", first, [now])
    assert again.id != ask.id
    assert asked.result("a", keys[1]) is RETRY
    asked.answered(ask.id, 1, bytes([HOST, HOST]))
    assert asked.result("a", keys[1]) is RETRY, "an answer to an old ask was believed"


def test_an_ask_that_nobody_answers_is_a_miss() -> None:
    asked = Lookups(ranks=1, holds=False, patience=0.0)
    keys = chain(0, 1)
    asked.need("a", 0, [keys])
    assert asked.result("a", keys[0]) is MISS


def test_what_is_over_is_forgotten() -> None:
    asked = Lookups(ranks=1, holds=True, patience=60)
    (ask,) = asked.need("a", 0, [chain(0, 1)])
    assert asked.forget("a")
    assert not asked.forget("a")
    asked.answered(ask.id, 1, bytes([HOST]))
    assert not asked._looks
    assert not asked._by_id


@dataclass
class Pins:
    """Stands for a store: `arrive` says how many keys of the next chains are to be had."""

    arrive: list[int | None]
    chains: list[list[bytes]] = field(default_factory=list)
    released: int = 0

    def pin(self, chain: Sequence[bytes]) -> list["Pins.Ticket"]:
        arrive = self.arrive.pop(0)
        self.chains.append(list(chain))
        return [] if arrive is None else [Pins.Ticket(self, arrive)]

    @dataclass
    class Ticket:
        pins: "Pins"
        prefix: int
        done: bool = False

        def poll(self) -> "Pins.Ticket | None":
            return self if self.done else None

        def cancel(self) -> None:
            pass

        def release(self) -> None:
            self.pins.released += 1


GROUPS = {0: Group(16, None), 1: Group(16, 2)}


def fetch(pins: Pins, found: list[bytes], blocks: int) -> Fetch:
    ask = Ask(1, "a", [chain(0, blocks), chain(1, blocks)][: len(found)])
    return Fetch(ask, found, GROUPS, pins.pin)  # type: ignore[arg-type]


def finish(fetching: Fetch) -> None:
    for _, _, tickets in fetching._under_way:
        for ticket in tickets:
            ticket.done = True  # type: ignore[attr-defined]


def test_a_chain_ends_where_fetching_ends() -> None:
    pins = Pins([3])
    fetching = fetch(pins, [bytes([HOST, NVME, 0, 0, NVME])], 5)
    assert fetching.answer() is None
    finish(fetching)
    assert fetching.answer() == bytes([HOST, NVME, FETCHED, 0, 0])
    assert pins.released == 0
    fetching.end()
    assert pins.released == 1


@pytest.mark.parametrize("one_more", [1, 0])
def test_windows_are_fetched_where_full_attention_ends(one_more: int) -> None:
    pins = Pins([6, one_more, 2])
    fetching = fetch(pins, [bytes([HOST]) * 4 + bytes(4), bytes([0, HOST, 0, 0, 0, 0, 0, NVME])], 8)
    finish(fetching)
    assert fetching.answer() is None
    # The window of two before block 6, and one more that may never have been stored.
    assert pins.chains == [chain(0, 8), chain(1, 8)[3:4], chain(1, 8)[4:6]]
    finish(fetching)
    full = bytes([HOST] * 4 + [FETCHED] * 2 + [0] * 2)
    window = bytes([0, HOST, 0, FETCHED * one_more, FETCHED, FETCHED, 0, NVME])
    assert fetching.answer() == full + window


def test_a_store_that_refuses_to_fetch_serves_host_memory_alone() -> None:
    fetching = fetch(Pins([None]), [bytes([HOST, NVME, HOST])], 3)
    assert fetching.answer() == bytes([HOST, 0, HOST])


def test_what_was_given_up_is_let_go() -> None:
    pins = Pins([1])
    fetching = fetch(pins, [bytes(2)], 2)
    fetching.end()
    assert pins.released == 1
    assert fetching._held == []
