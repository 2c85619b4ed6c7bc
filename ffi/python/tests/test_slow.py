"""Load or recompute, and remote stores."""

import time

import kvtier
import pytest
from conftest import BLOCK, MIB, page

TOKENS = 512
SECRET = bytes(range(32))


def node(shared, host=4 * MIB, **more):
    """Two of them are two nodes: the same model and secret, a shared directory, nothing else."""
    return kvtier.Store(
        BLOCK,
        host,
        model="m",
        revision="1",
        secret=SECRET,
        tokens_per_block=TOKENS,
        remotes=[f"file://{shared}"],
        **more,
    )


def test_what_one_node_has_stored_another_loads(tmp_path):
    chains = [[b"%d/%d" % (chain, i) for i in range(8)] for chain in range(6)]
    with node(tmp_path) as first:
        for chain in chains:
            assert first.put(chain, b"".join(page(i) for i in range(8)), chained=True).wait().done == 8
        # What is written behind the runtime's back: each submission lets time pass.
        while first.stats()["remote_writes"] < 48:
            first.pin([b"nothing"]).wait()
    with node(tmp_path) as second:
        # Recomputing takes for ever, so that it is loaded once the store has been measured, which happens on the side.
        loaded, why = 0, None
        while not loaded:
            for chain in chains:
                second.observed_prefill(0, 8 * TOKENS, 16.0)
                back = bytearray(8 * BLOCK)
                ticket = second.get(chain, back, chained=True)
                done = ticket.wait().done
                why = ticket.why() or why
                assert back[: done * BLOCK] == b"".join(page(i) for i in range(done))
                loaded += done
        assert second.stats()["remote_reads"] > 0, second.stats()
        assert "remote" in why
        quote = second.quote(chains[0])
        assert set(quote) == {"recompute", "expected", "p90", "blocks", "with_remote"}
        assert 0 <= quote["blocks"] <= 8
        account = second.balance()
        assert account["recompute_only"] > 0
        # Keys by themselves are not asked for remotely.
        assert list(second.exists([b"absent"])) == [0]


def test_a_burst_of_blocks_reaches_the_remote_store_also_one_by_one(tmp_path):
    with node(tmp_path, host=64 * MIB) as store:
        tickets = [store.put([b"%d" % number], page(number)) for number in range(200)]
        assert [ticket.wait().done for ticket in tickets] == [1] * 200
        until = time.monotonic() + 60
        while store.stats()["remote_writes"] < 200:
            assert time.monotonic() < until, store.stats()
            time.sleep(0.01)


def test_a_chain_ends_at_its_first_gap(store):
    store.put([b"0", b"1", b"3"], page(0) + page(1) + page(3)).wait()
    keys = [b"0", b"1", b"2", b"3"]
    back = bytearray(4 * BLOCK)
    flat = store.get(keys, back)
    assert (flat.wait().done, flat.served()) == (3, [True, True, False, True])
    back = bytearray(4 * BLOCK)
    store.put([b"a", b"b"], page(5) + page(6), chained=True).wait()
    chain = store.get([b"a", b"b", b"c"], back[: 3 * BLOCK], chained=True)
    assert (chain.wait().done, chain.served()) == (2, [True, True, False])
    assert chain.why() is None
    assert store.quote([b"a"]) is None
    assert store.balance() is None


def test_addresses_that_make_no_sense(tmp_path):
    for url in ("s4://bucket", "nonsense", "file://relative"):
        with pytest.raises(kvtier.Invalid, match="remote store"):
            kvtier.Store(BLOCK, MIB, tokens_per_block=16, remotes=[url])
    with pytest.raises(kvtier.OpenFailed):
        kvtier.Store(BLOCK, MIB, tokens_per_block=16, remotes=[f"file://{tmp_path}/none"])
    with pytest.raises(kvtier.Invalid, match="tokens_per_block"):
        kvtier.Store(BLOCK, MIB, remotes=[f"file://{tmp_path}"])
    with pytest.raises(kvtier.Invalid) as refused:
        kvtier.Store(BLOCK, MIB, tokens_per_block=16, remotes=["s4://user:password@host"])
    assert "password" not in str(refused.value)


def test_a_redis_that_is_down_is_a_miss():
    with kvtier.Store(BLOCK, MIB, tokens_per_block=16, remotes=["redis://:password@127.0.0.1:1"]) as store:
        store.put([b"k"], page(1)).wait()
        ticket = store.get([b"k", b"absent"], bytearray(2 * BLOCK), chained=True)
        assert ticket.wait().prefix == 1
