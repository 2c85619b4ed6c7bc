import kvtier
import numpy as np
import pytest
from conftest import MIB

LAYOUT = kvtier.Layout(layers=3, kv_heads=2, head_dim=32, dtype="f16", tokens_per_block=8)
BLOCKS = 12


def tensors(arrangement):
    """As runtimes hold them, and a function that gives one block of all of them as one array."""
    shape = (8, 2, 32)
    make = lambda *lead: np.zeros((*lead, *shape), np.float16)  # noqa: E731
    match arrangement:
        case "kv_outer":
            each = [make(2, BLOCKS) for _ in range(3)]
            block = lambda b: np.stack([t[:, b] for t in each])  # noqa: E731
        case "block_outer":
            each = [make(BLOCKS, 2) for _ in range(3)]
            block = lambda b: np.stack([t[b] for t in each])  # noqa: E731
        case "separate_kv":
            each = [make(BLOCKS) for _ in range(6)]
            block = lambda b: np.stack([t[b] for t in each])  # noqa: E731
        case "block_outermost":
            each = [make(BLOCKS, 3, 2)]
            block = lambda b: each[0][b]  # noqa: E731
    rng = np.random.default_rng(1)
    for tensor in each:
        tensor[:] = rng.random(tensor.shape)
    return each, block


@pytest.mark.parametrize("arrangement", ["kv_outer", "block_outer", "separate_kv", "block_outermost"])
def test_blocks_go_out_and_come_back_elsewhere(arrangement):
    each, block = tensors(arrangement)
    before = [block(b).copy().reshape(-1) for b in range(BLOCKS)]
    with kvtier.Store(LAYOUT.block_bytes, 4 * MIB) as store:
        with store.register(LAYOUT, each, num_blocks=BLOCKS, arrangement=arrangement) as pool:
            assert pool.num_blocks == BLOCKS
            keys = [b"a", b"b", b"c"]
            assert pool.offload(keys, [0, 5, 7]).wait().done == 3
            # The same bytes as a page, layer by layer.
            page = np.zeros(LAYOUT.block_bytes // 2, np.float16)
            assert store.get([b"b"], page).wait().done == 1
            assert (page == before[5]).all()
            for tensor in each:
                tensor[:] = 0
            load = pool.onboard([*keys, b"absent"], [11, 10, 9, 8])
            for layer in range(3):
                load.wait_layer(layer, 60)
            assert load.wait().prefix == 3
            for key, b in [(0, 11), (5, 10), (7, 9)]:
                assert (block(b).reshape(-1) == before[key]).all()
            assert not block(8).any()
            with pytest.raises(kvtier.LoadFailed):
                pool.onboard([b"absent"], [0]).wait_layer(0, 60)
            with pytest.raises(kvtier.Invalid):
                pool.onboard([b"a"], [BLOCKS])
            with pytest.raises(kvtier.OpenFailed, match="pool"):
                store.register(LAYOUT, each, num_blocks=BLOCKS, arrangement=arrangement)
        with pytest.raises(kvtier.Closed):
            pool.offload([b"a"], [0])
        with pytest.raises(kvtier.Invalid):
            store.get([b"a"], page).wait_layer(0)


def test_strides_say_the_same():
    each, block = tensors("block_outer")
    strides = (None, each[0].strides[1], each[0].strides[0], each[0].strides[2], each[0].strides[3])
    with (
        kvtier.Store(LAYOUT.block_bytes, 4 * MIB) as store,
        store.register(LAYOUT, each, num_blocks=BLOCKS, arrangement=strides) as pool,
    ):
        assert pool.offload([b"k"], [3]).wait().done == 1
        page = np.zeros(LAYOUT.block_bytes // 2, np.float16)
        store.get([b"k"], page).wait()
        assert (page == block(3).reshape(-1)).all()


def test_tensors_that_do_not_fit_are_refused():
    each, _ = tensors("kv_outer")
    with kvtier.Store(LAYOUT.block_bytes, 4 * MIB) as store:
        for wrong, blocks in [(each[:2], BLOCKS), (each, BLOCKS + 1), ([each[0][::2], *each[1:]], BLOCKS)]:
            with pytest.raises(ValueError, match=r"tensors|bytes|contiguous"):
                store.register(LAYOUT, wrong, num_blocks=blocks)
        with pytest.raises(kvtier.Invalid, match="arrangement"):
            store.register(LAYOUT, each, num_blocks=BLOCKS, arrangement="round")
    with kvtier.Store(4096, 4 * MIB) as store, pytest.raises(kvtier.Invalid, match="block"):
        store.register(LAYOUT, each, num_blocks=BLOCKS)


def test_layouts():
    latent = kvtier.Layout(layers=2, kv_heads=0, head_dim=576, dtype="bf16", tokens_per_block=16)
    assert latent.block_bytes == 2 * 576 * 2 * 16
    assert latent != LAYOUT
    with pytest.raises(kvtier.Invalid, match="dtype"):
        kvtier.Layout(layers=1, kv_heads=1, head_dim=1, dtype="int3", tokens_per_block=1)
    with pytest.raises(kvtier.Invalid):
        kvtier.Layout(layers=0, kv_heads=1, head_dim=1, dtype="f32", tokens_per_block=1)
