"""How vLLM's paged tensors are divided among stores.

vLLM lets KV groups (full attention, sliding windows, ..) overlay the same tensors: block 7 belongs to one group at a
time. Groups of the same pages share one store, so that none of them has a fixed share of the memory: vLLM's keys end
with the group. Pages of another size or stride make another store, as a store has blocks of one size; this happens with
models that keep an index beside the latent, and with drafting models. A key is there if it is in all stores of its
group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvtier import Layout, Pool, Store
from kvtier.vllm._compat import CanonicalKVCaches


@dataclass(frozen=True, slots=True)
class Part:
    """Equal pages, one per tensor, that make up a block of some groups."""

    groups: tuple[int, ...]
    """vLLM's numbers of the groups."""
    starts: tuple[int, ...]
    """Address of block 0 in each tensor."""
    page: int
    """Bytes of a block in each tensor, without padding."""
    stride: int
    """From block to block."""
    num_blocks: int
    device: int | None
    """Ordinal of the GPU; none for tensors in ordinary memory."""
    owners: tuple[object, ...]
    """Keeps the tensors alive."""

    @property
    def block_bytes(self) -> int:
        """Bytes of a block over all tensors."""
        return self.page * len(self.starts)

    def register(self, store: Store, streams: Sequence[int]) -> Pool:
        """Registers the tensors. Pages are opaque: a "token" of a "latent" of so many bytes."""
        layout = Layout(layers=len(self.starts), kv_heads=0, head_dim=self.page, dtype="fp8_e4m3", tokens_per_block=1)
        size = (self.num_blocks - 1) * self.stride + self.page
        return store.register(
            layout,
            [(start, size) for start in self.starts],
            num_blocks=self.num_blocks,
            arrangement=(None, self.page, self.stride, self.page, self.page),
            device=self.device,
            streams=streams,
        )


def parts_of(caches: CanonicalKVCaches, group_ids: Sequence[int]) -> list[Part]:
    """Divides the tensors; `group_ids` are vLLM's numbers of the groups that `caches` lists."""
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for group, refs in zip(group_ids, caches.group_data_refs, strict=True):
        classes: dict[tuple[int, int, str], dict[int, None]] = {}
        for ref in refs:
            tensor = caches.tensors[ref.tensor_idx].tensor
            kind = (ref.page_size_bytes, tensor.stride(0), str(tensor.device))
            classes.setdefault(kind, {})[ref.tensor_idx] = None
        for (page, _, _), indices in classes.items():
            groups.setdefault((page, tuple(indices)), []).append(group)
    parts = []
    for (page, numbers), members in groups.items():
        tensors = [caches.tensors[number].tensor for number in numbers]
        first = tensors[0]
        parts.append(
            Part(
                groups=tuple(members),
                starts=tuple(tensor.data_ptr() for tensor in tensors),
                page=page,
                stride=first.stride(0),
                num_blocks=first.shape[0],
                device=None if first.device.type == "cpu" else first.device.index,
                owners=tuple(tensors),
            )
        )
    return parts
