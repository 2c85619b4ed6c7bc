import array
import ctypes

import kvtier
import numpy as np
import pytest
from conftest import BLOCK, MIB, page
from kvtier import KeyStatus, Presence, Removal


def test_what_is_stored_is_what_comes_back_or_a_miss(store):
    pages = [page(i) for i in range(10)]
    keys = [b"%032d" % i for i in range(10)]
    assert store.put(keys, pages).wait() == store.put(keys, pages).wait()
    back = [bytearray(BLOCK) for _ in range(11)]
    ticket = store.get([*keys, b"absent"], back)
    summary = ticket.wait()
    assert (summary.keys, summary.done, summary.prefix) == (11, 10, 10)
    assert back[:10] == pages
    assert back[10] == bytes(BLOCK), "the buffer of a miss is left as it was"
    assert list(ticket.statuses()) == [KeyStatus.DONE] * 10 + [KeyStatus.MISSING]
    assert ticket.served() == [True] * 10 + [False]
    assert ticket.bitmap() == bytes([0xFF, 0x03])
    assert store.exists([keys[0], b"absent"]) == bytes([Presence.HOST, Presence.ABSENT])
    assert store.prefix([*keys[:3], b"absent", keys[4]]) == 3


def test_a_key_names_its_bytes(store):
    store.put([b"k"], page(1)).wait()
    again = store.put([b"k"], page(2))
    again.wait()
    assert list(again.statuses()) == [KeyStatus.PRESENT]
    back = bytearray(BLOCK)
    store.get([b"k"], back).wait()
    assert back == page(1)


def test_every_form_of_keys_names_the_same_blocks(store):
    keys = [bytes([i]) * 16 for i in range(70)]
    store.put(keys[:2], page(0) + page(1)).wait()
    packed = b"".join(keys)
    rows = np.frombuffer(packed, np.uint8).reshape(70, 16)
    items = np.frombuffer(packed, "S16")
    there = bytes([1, 1]) + bytes(68)
    for form in (keys, tuple(keys), packed, bytearray(packed), rows, items, iter(keys), store.keys(keys)):
        assert store.exists(form) == there
    assert store.exists([np.frombuffer(keys[0], np.uint8)]) == b"\1"
    assert store.exists([]) == b""
    store.put(["text", "täxt"], page(0) + page(1)).wait()
    assert store.exists(["text", b"text", "täxt".encode(), "other"]) == bytes([1, 1, 1, 0])
    eights = np.arange(3, dtype=np.uint64)
    store.put(eights[1:2], page(0)).wait()
    assert store.exists(eights) == bytes([0, 1, 0])
    assert store.exists([(1).to_bytes(8, "little")]) == b"\1"


def test_keys_of_tokens_are_a_chain(store):
    tokens = list(range(50))
    keys = store.token_keys(tokens, 16)
    assert len(keys) == 3, "a block that is not full has no key"
    rest = store.token_keys(tokens[16:], 16, parent=keys[0])
    assert [keys[i] for i in (1, 2)] == [rest[0], rest[1]] == [keys[-2], keys[-1]]
    assert keys[0] == store.token_keys(np.array(tokens, np.uint32), 16)[0]
    different = [store.token_keys(tokens, 16, salt=b"s"), store.token_keys(tokens, 16, lora=b"s")]
    different.append(store.token_keys([9, *tokens[1:]], 16))
    assert len({bytes(k[i]) for k in [keys, *different] for i in range(3)}) == 12
    store.put(keys, b"".join(page(i) for i in range(3)), chained=True).wait()
    assert store.prefix(keys) == 3
    assert store.prefix(keys[1:]) == 2
    assert len(keys[::2]) == 2
    with pytest.raises(IndexError):
        keys[3]
    with (
        kvtier.Store(BLOCK, MIB, model="m", revision="2", secret=bytes(32)) as other,
        pytest.raises(kvtier.Invalid, match="another namespace"),
    ):
        other.exists(keys)


def test_a_chain_has_no_block_behind_a_gap(store):
    keys = [b"0", b"1", b"2", b"3"]
    ticket = store.put(keys, [page(0), page(1), None, page(3)], chained=True)
    ticket.wait()
    assert list(ticket.statuses()) == [1, 1, KeyStatus.MISSING, KeyStatus.MISSING]
    ticket = store.put(keys, [None, None, page(2), page(3)], chained=True)
    ticket.wait()
    assert list(ticket.statuses()) == [KeyStatus.PRESENT] * 2 + [KeyStatus.DONE] * 2


class OnlyDLPack:
    """What a library without the buffer protocol gives."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self):
        return self.array.__dlpack__()


class Torch:
    """What is used of a torch.Tensor, which has no buffer protocol; torch itself is where the connectors are tested."""

    def __init__(self, array, device="cpu"):
        self.array, self.device, self.nbytes = array, self, array.nbytes
        self.type, self.index = device, None

    def data_ptr(self):
        return self.array.ctypes.data

    def is_contiguous(self):
        return self.array.flags.c_contiguous


def test_tensors_that_cannot_be_used_here(store):
    array = np.zeros(2 * BLOCK, np.uint8)
    for tensor, why in [
        (Torch(array[::2]), "contiguous"),
        (Torch(array[:BLOCK], "cuda"), "GPU"),
        (Torch(array, "xpu"), "xpu"),
    ]:
        with pytest.raises(kvtier.Invalid, match=why):
            store.put([b"k"], [tensor])
    with pytest.raises(kvtier.Invalid, match="contiguous"):
        store.put([b"k"], [OnlyDLPack(array.reshape(2, -1).T)])


def ways(block):
    """One block of memory in every form, with a function that reads it."""
    raw = bytearray(block)
    yield raw, lambda: raw
    yield memoryview(raw), lambda: raw
    yield array.array("H", bytes(block)), None
    whole = np.frombuffer(bytearray(block), np.float32).reshape(4, -1)
    yield whole, whole.tobytes
    yield np.frombuffer(bytearray(block), np.float16), None
    packed = np.frombuffer(bytearray(block), np.uint16)
    yield OnlyDLPack(packed), packed.tobytes
    torch = np.frombuffer(bytearray(block), np.uint16)
    yield Torch(torch), torch.tobytes
    c = (ctypes.c_char * len(block)).from_buffer_copy(block)
    yield c, lambda: c.raw
    yield (ctypes.addressof(c), len(block)), lambda: c.raw
    yield [memoryview(raw)[:100], memoryview(raw)[100:]], lambda: raw


@pytest.mark.parametrize("way", range(10))
def test_memory_in_every_form(store, way):
    source, _ = list(ways(page(way)))[way]
    assert store.put([b"key"], [source]).wait().done == 1
    target, read = list(ways(bytearray(BLOCK)))[way]
    assert store.get([b"key"], [target]).wait().done == 1
    read = read or (lambda: bytes(memoryview(target).cast("B")))
    assert bytes(read()) == bytes(page(way))


def test_runs_are_dealt_out_evenly(store):
    source = np.concatenate([np.frombuffer(page(i), np.uint8) for i in range(4)])
    start = source.ctypes.data
    half = BLOCK // 2
    pointers = [start + i * half for i in range(8)]
    assert store.put(bytes(64), kvtier.Runs(pointers, half, keep=source)).wait().done == 4
    keys = [b"a", b"b", b"c", b"d"]
    for sizes in (half, [half] * 8, np.full(8, half, np.uint64)):
        assert store.put(keys, kvtier.Runs(np.array(pointers, np.uint64), sizes, keep=source)).wait().done == 4
    back = np.zeros_like(source)
    # K of all pages, then V: two runs a page, as SGLang has them.
    pointers = [back.ctypes.data + at for i in range(4) for at in (i * half, (4 + i) * half)]
    assert store.get(keys, kvtier.Runs(pointers, half, keep=back)).wait().done == 4
    assert (back.reshape(2, 4, half).transpose(1, 0, 2).reshape(-1) == source).all()
    with pytest.raises(kvtier.Invalid):
        store.get(keys[:3], kvtier.Runs(pointers, half))
    with pytest.raises(kvtier.Invalid):
        kvtier.Runs([1, 2], [1])
    with pytest.raises(kvtier.Invalid, match="no address"):
        store.get(keys[:1], kvtier.Runs([0], BLOCK))


def test_what_cannot_be_used_is_refused(store):
    good = bytearray(BLOCK)
    for keys, buffers in [
        ([b""], good),
        ([b"x" * 4097], good),
        ([7], good),
        ("text", good),
        (b"15 bytes are few", bytearray(BLOCK - 1)),
        (bytes(15), good),
        ([b"k"], bytearray(BLOCK + 1)),
        ([b"k"], [good, good]),
        ([b"k"], [None]),
        ([b"k"], [object()]),
        ([b"k"], [(0, BLOCK)]),
        ([b"k", b"l"], good),
    ]:
        with pytest.raises(kvtier.Invalid):
            store.get(keys, buffers)
    with pytest.raises(BufferError):
        store.get([b"k"], bytes(BLOCK))
    with pytest.raises(ValueError, match="contiguous"):
        store.get([b"k"], np.zeros(2 * BLOCK, np.uint8)[::2])
    with pytest.raises(kvtier.Invalid):
        store.get([b"k"], good, timeout=-1)
    with pytest.raises(kvtier.Invalid, match="NVMe"):
        store.flush()
    for arguments in ({"path": "/nonexistent"}, {"durability": "perhaps"}):
        with pytest.raises(kvtier.Invalid):
            kvtier.Store(BLOCK, MIB, **arguments)
    with pytest.raises(kvtier.Invalid):
        kvtier.Store(BLOCK, 4096)
    with pytest.raises(kvtier.OpenFailed, match="/proc/none"):
        kvtier.Store(BLOCK, MIB, path="/proc/none/kv", nvme_bytes=64 * MIB)
    assert store.stats()["under_way"] == 0


def test_what_is_durable_survives_and_only_under_its_name(tmp_path):
    def opened(**changes):
        arguments = {"tenant": "t", "model": "m", "revision": "r", "layout": "l", "durability": "at_close"}
        return kvtier.Store(BLOCK, 4 * MIB, path=tmp_path, nvme_bytes=64 * MIB, **{**arguments, **changes})

    keys = [b"%d" % i for i in range(20)]
    with opened() as store:
        assert store.put(keys, [page(i) for i in range(20)]).wait().done == 20
        assert store.flush().wait().done == 1
    with opened() as store:
        assert store.exists(keys) == bytes([Presence.NVME]) * 20
        with store.pin(keys[:4]) as pin:
            assert pin.wait().done == 4
            assert store.exists(keys[:5]) == bytes([1, 1, 1, 1, 2])
        back = bytearray(20 * BLOCK)
        assert store.get(keys, back).wait().done == 20
        assert back == b"".join(page(i) for i in range(20))
        assert store.stats()["nvme_reads"] == 20
    for change in ("tenant", "model", "revision", "layout"):
        with opened(**{change: "other"}) as store:
            assert store.exists(keys) == bytes(20), change


def test_closing(store):
    store.close()
    store.close()
    with pytest.raises(kvtier.Closed):
        store.exists([b"k"])
    with pytest.raises(kvtier.Closed):
        store.get([b"k"], bytearray(BLOCK))
    with pytest.raises(kvtier.Closed):
        store.stats()


def test_numbers_are_those_of_the_engine():
    from kvtier import _kvtier

    assert [(s.name, s.value) for s in KeyStatus] == _kvtier._KEY_STATUSES
    assert [(p.name, p.value) for p in Presence] == _kvtier._PRESENCES
    assert [(r.name, r.value) for r in Removal] == _kvtier._REMOVALS


def test_what_was_built():
    info = kvtier.build_info()
    assert info["version"] == kvtier.__version__
    assert "file" in info["remotes"]
    assert info["stable_abi"] == "3.10"


def test_every_exception_is_an_error():
    from kvtier import errors

    raised = [e for e in vars(errors).values() if isinstance(e, type)]
    assert len(raised) == 9
    assert all(issubclass(e, kvtier.Error) and getattr(kvtier, e.__name__) is e for e in raised)


def test_what_is_removed_or_cleared_is_a_miss(tmp_path):
    def open_store():
        return kvtier.Store(BLOCK, MIB, path=tmp_path / "kv", nvme_bytes=64 * MIB, durability="at_close")

    with open_store() as store:
        store.put([b"0", b"1", b"2"], page(0) + page(1) + page(2)).wait()
        # What is on its way to NVMe is in use.
        store.flush().wait()
        with store.pin([b"0"]) as pin:
            pin.wait()
            removed = store.remove([b"0", b"1", b"absent"])
        assert [Removal(r) for r in removed] == [Removal.IN_USE, Removal.REMOVED, Removal.ABSENT]
        assert list(store.exists([b"0", b"1", b"2"])) == [1, 0, 1]
        hashed = store.keys([b"0"])
        store.clear()
        assert list(store.exists([b"0", b"1", b"2"])) == [0, 0, 0]
        assert list(store.exists(hashed)) == [0]
        store.put([b"2"], page(7)).wait()
    with open_store() as store:
        back = bytearray(BLOCK)
        assert store.get([b"2"], back).wait().done == 1
        assert back == page(7)
        assert list(store.exists([b"0"])) == [0]
    with pytest.raises(kvtier.Closed):
        store.clear()


def test_a_chain_is_pinned_up_to_its_first_gap(store):
    store.put([b"0", b"1", b"3"], page(0) + page(1) + page(3)).wait()
    with store.pin([b"0", b"1", b"2", b"3"], chained=True) as pin:
        assert (pin.wait().done, pin.served()) == (2, [True, True, False, False])
        assert list(store.remove([b"0", b"1", b"3"])) == [Removal.IN_USE, Removal.IN_USE, Removal.REMOVED]
