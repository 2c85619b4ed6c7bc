"""Paged torch tensors in the real shapes of the runtimes, copied by kvtier itself.

On the CPU, or with `KVTIER_TORCH_DEVICE=cuda` on a GPU. kvtier never imports torch: it sees addresses.
"""

import os
from collections.abc import Iterator

import kvtier
import pytest

import torch

DEVICE = torch.device(os.environ.get("KVTIER_TORCH_DEVICE", "cpu"))
# Real block shapes; few layers and blocks where memory is a CPU machine's.
LAYERS, BLOCKS = (32, 256) if DEVICE.type == "cuda" else (4, 24)


class Shape:
    """Tensors of one runtime, and how they are registered."""

    def __init__(self, layout: kvtier.Layout, tensors: list[torch.Tensor], arrangement, block) -> None:
        """`block(i)` gives all of block `i` as one new tensor."""
        self.layout, self.tensors, self.arrangement, self.block = layout, tensors, arrangement, block

    def fill(self, seed: int) -> None:
        for i, tensor in enumerate(self.tensors):
            values = torch.arange(tensor.numel() * tensor.element_size(), device=DEVICE)
            tensor.view(torch.uint8).view(-1).copy_((values * 31 + values // 251 + seed * 7 + i) % 256)


def geometry(dtype: str, **more) -> kvtier.Layout:
    return kvtier.Layout(layers=LAYERS, dtype=dtype, **more)


def vllm_llama() -> Shape:
    """Layout LBHNC of Llama-3.1-8B: K and V of a head side by side, 16 tokens a block."""
    tensors = [torch.empty(BLOCKS, 8, 16, 256, dtype=torch.bfloat16, device=DEVICE) for _ in range(LAYERS)]
    layout = geometry("bf16", kv_heads=8, head_dim=128, tokens_per_block=16, order="HND", fused=True)
    return Shape(layout, tensors, "block_outer", lambda i: torch.stack([t[i] for t in tensors]))


def vllm_latent() -> Shape:
    """DeepSeek's latent: 576 elements a token, 64 tokens a block."""
    tensors = [torch.empty(BLOCKS, 64, 576, dtype=torch.bfloat16, device=DEVICE) for _ in range(LAYERS)]
    layout = geometry("bf16", kv_heads=0, head_dim=576, tokens_per_block=64)
    return Shape(layout, tensors, "block_outer", lambda i: torch.stack([t[i] for t in tensors]))


def sglang_llama() -> Shape:
    """K and V of each layer apart, token by token; a page is 64 slots in a row."""
    tensors = [torch.empty(BLOCKS * 64, 8, 128, dtype=torch.bfloat16, device=DEVICE) for _ in range(2 * LAYERS)]
    layout = geometry("bf16", kv_heads=8, head_dim=128, tokens_per_block=64)
    return Shape(layout, tensors, "separate_kv", lambda i: torch.stack([t[64 * i : 64 * (i + 1)] for t in tensors]))


def sglang_fp8() -> Shape:
    """As above in 8 bits."""
    kind = torch.float8_e4m3fn
    tensors = [torch.empty(BLOCKS * 64, 4, 128, dtype=kind, device=DEVICE) for _ in range(2 * LAYERS)]
    layout = geometry("fp8_e4m3", kv_heads=4, head_dim=128, tokens_per_block=64)
    return Shape(
        layout,
        tensors,
        "separate_kv",
        lambda i: torch.stack([t.view(torch.uint8)[64 * i : 64 * (i + 1)] for t in tensors]),
    )


def flash_attention() -> Shape:
    """K and V outermost in each layer, as vLLM's and LMCache's older layouts: [2, blocks, tokens, heads, dim]."""
    tensors = [torch.empty(2, BLOCKS, 16, 8, 128, dtype=torch.float16, device=DEVICE) for _ in range(LAYERS)]
    layout = geometry("f16", kv_heads=8, head_dim=128, tokens_per_block=16)
    return Shape(layout, tensors, "kv_outer", lambda i: torch.stack([t[:, i] for t in tensors]))


def all_layers_in_one() -> Shape:
    """Layout BLHNC: a block of all layers is one piece of memory."""
    tensors = [torch.empty(BLOCKS, LAYERS, 2, 16, 8, 128, dtype=torch.bfloat16, device=DEVICE)]
    layout = geometry("bf16", kv_heads=8, head_dim=128, tokens_per_block=16)
    return Shape(layout, tensors, "block_outermost", lambda i: tensors[0][i].clone())


SHAPES = [vllm_llama, vllm_latent, sglang_llama, sglang_fp8, flash_attention, all_layers_in_one]


def streams() -> list[int]:
    return [torch.cuda.current_stream().cuda_stream] if DEVICE.type == "cuda" else []


@pytest.fixture(params=SHAPES, ids=lambda make: make.__name__)
def shape(request) -> Iterator[Shape]:
    if DEVICE.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):
            yield request.param()
    else:
        yield request.param()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8).cpu()


def test_blocks_go_out_and_come_back_elsewhere(shape: Shape):
    out, back = [0, 3, 7, BLOCKS - 1], [BLOCKS - 2, 5, 1, 9]
    keys = [b"%d" % block for block in out]
    size = shape.layout.block_bytes
    with (
        kvtier.Store(size, 64 * (size + 4096) + (1 << 20)) as store,
        store.register(
            shape.layout,
            shape.tensors,
            num_blocks=BLOCKS,
            arrangement=shape.arrangement,
            streams=streams(),
        ) as pool,
    ):
        shape.fill(1)
        before = [bits(shape.block(block)) for block in out]
        # The copies wait for what is queued in the stream, not for the device: the last fill counts.
        shape.fill(2)
        expected = [bits(shape.block(block)) for block in out] if DEVICE.type == "cpu" else None
        assert pool.offload(keys, out).wait().done == len(out)
        expected = expected or [bits(shape.block(block)) for block in out]
        assert not any(torch.equal(a, b) for a, b in zip(before, expected, strict=True))
        shape.fill(3)
        untouched = [block for block in range(BLOCKS) if block not in back]
        rest = [bits(shape.block(block)) for block in untouched]
        load = pool.onboard(keys, back)
        for layer in range(LAYERS):
            for stream in streams():
                load.hold_layer(layer, stream)
            load.wait_layer(layer, 60)
        assert load.wait().prefix == len(out)
        for block, wanted in zip(back, expected, strict=True):
            assert torch.equal(bits(shape.block(block)), wanted)
        for block, wanted in zip(untouched, rest, strict=True):
            assert torch.equal(bits(shape.block(block)), wanted), f"block {block} was not asked for"


def test_host_tensors_are_read_and_written_in_place():
    """What runtimes with memory of their own use: LMCache's chunks, SGLang's pages of two runs."""
    size = 256 * 8 * 128 * 2 * 2
    chunk = torch.randint(0, 256, (size,), dtype=torch.uint8)
    if DEVICE.type == "cuda":
        chunk = chunk.pin_memory()
    wanted = chunk.clone()
    with kvtier.Store(size, 64 << 20) as store:
        assert store.put([b"whole"], chunk).wait().done == 1
        halves = [[chunk[: size // 2], chunk[size // 2 :]]]
        assert store.put([b"halves"], halves).wait().done == 1
        for key in (b"whole", b"halves"):
            chunk.zero_()
            assert store.get([key], halves).wait().done == 1
            assert torch.equal(chunk, wanted)
        with pytest.raises((kvtier.Invalid, TypeError, ValueError)):
            store.put([b"strided"], torch.zeros(2 * size, dtype=torch.uint8)[::2])
