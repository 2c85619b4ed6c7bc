# ruff: noqa: ANN401 - what is SGLang's has no types here
"""SGLang's device pools as sets of equal tensors, each of which becomes one pool of kvtier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvtier.errors import Invalid
from kvtier.sglang._compat import (
    DevicePoolEntry,
    DevicePoolGroup,
    HybridLinearKVPool,
    MHATokenToKVPool,
    MLATokenToKVPool,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    SWAKVPool,
    Tensor,
    mamba_device_pool_entry,
    resolve_hybrid_device_pool_group,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTensors:
    """Tensors of one pool with rows of one size: page `i` is rows `i * rows ..` of each of them."""

    name: str
    tensors: tuple[Tensor, ...]
    """In the order in which a forward pass needs them."""
    last: dict[int, int]
    """For each of the model's layers (as the pool's layer counter numbers them) the last of its tensors."""
    rows: int
    """Rows of a page."""
    row_bytes: int
    stride: int
    """Bytes from row to row."""
    num_pages: int

    @property
    def page_bytes(self) -> int:
        """Bytes of a page over all tensors."""
        return len(self.tensors) * self.rows * self.row_bytes

    @property
    def span(self) -> int:
        """Bytes from the first of a tensor to its last."""
        return (self.num_pages * self.rows - 1) * self.stride + self.row_bytes

    def describe(self) -> str:
        """What decides the meaning of a page's bytes, as far as the tensors tell."""
        first = self.tensors[0]
        shape = "x".join(str(n) for n in first.shape[1:])
        return f"{len(self.tensors)}x{self.rows}x{shape}:{str(first.dtype).removeprefix('torch.')}"


def device_pools(kvcache: Any, params: Any, components: set[Any]) -> DevicePoolGroup:
    """The pools that an external linker serves.

    SGLang assembles some of the hybrid models' itself; MHA, plain MLA, sliding windows, and states beside MHA it leaves
    to the linker.

    Raises `Invalid` for pools with more in them than is known here: to restore a part of a page is to corrupt it.
    """
    page = params.page_size
    drafts = [*getattr(params, "sidecar_draft_device_pools", ()), *getattr(params, "mtp_draft_device_pools", ())]
    if type(kvcache) is MHATokenToKVPool or type(kvcache) is MLATokenToKVPool:
        layers = {layer: layer for layer in range(kvcache.layer_num)}
        entries = [_entry(PoolName.KV, kvcache, layers, page)]
    elif type(kvcache) is SWAKVPool and len(components) == 2:
        entries = []
        for name, pool, is_window in (
            (PoolName.KV, kvcache.full_kv_pool, False),
            (PoolName.SWA, kvcache.swa_kv_pool, True),
        ):
            mapping = kvcache.layers_mapping.items()
            layers = {layer - kvcache.start_layer: index for layer, (index, window) in mapping if window is is_window}
            entries.append(_entry(name, pool, layers, page))
    elif type(kvcache) is HybridLinearKVPool and type(kvcache.full_kv_pool) is MHATokenToKVPool:
        mapping = kvcache.full_attention_layer_id_mapping.items()
        layers = {layer - kvcache.start_layer: index for layer, index in mapping}
        entries = [
            _entry(PoolName.KV, kvcache.full_kv_pool, layers, page),
            mamba_device_pool_entry(params.req_to_token_pool, kvcache.start_layer),
        ]
    else:
        return resolve_hybrid_device_pool_group(kvcache=kvcache, page_size=page, params=params, components=components)
    if drafts:
        raise Invalid("kvtier's linker does not know the KV cache of this draft model")
    num_layers = 1 + max(layer for entry in entries for layer in entry.layer_mapping)
    return DevicePoolGroup(entries, num_layers, page, rank_replicated=type(kvcache) is MLATokenToKVPool)


def _entry(name: PoolName, pool: Any, layers: dict[int, int], page: int) -> DevicePoolEntry:
    mapping: dict[int, Any]
    if type(pool) is MHATokenToKVPool and pool.k_scale_buffer is None:
        buffers = [*pool.k_buffer, *pool.v_buffer]
        mapping = {layer: (index, len(pool.k_buffer) + index) for layer, index in layers.items()}
    elif type(pool) is MLATokenToKVPool:
        buffers = list(pool.kv_buffer)
        mapping = dict(layers)
    else:
        raise Invalid(f"kvtier's linker does not know the KV cache {type(pool).__name__}")
    if any(buffer.shape[0] != pool.size + page for buffer in buffers):
        raise Invalid("kvtier's linker needs a KV cache whose rows are tokens")
    return DevicePoolEntry(
        name=name,
        indices_from_pool=name,
        device_pool=pool,
        components=[buffers],
        layer_mapping=mapping,
        page_size=page,
        rows_are_pages=False,
    )


def page_tensors(entry: DevicePoolEntry) -> list[PageTensors]:
    """The tensors of a pool, sorted out by the size of their rows (K and V may differ; so do states)."""
    needed = []
    for component, meta in zip(entry.components, entry.buffer_meta, strict=True):
        layer_of: dict[int, int] = {}
        for layer, mapped in entry.layer_mapping.items():
            for index in (mapped,) if isinstance(mapped, int) else mapped:
                layer_of[index] = layer
        for index, (tensor, (_, stride, page_bytes)) in enumerate(zip(component, meta, strict=True)):
            row_bytes = tensor.nbytes // tensor.shape[0]
            if not tensor[0].is_contiguous():
                raise Invalid(f"a row of the pool {entry.name.value} is not contiguous")
            # What no layer names is there with the last one.
            layer = layer_of.get(index, max(entry.layer_mapping))
            needed.append((layer, tensor, (page_bytes // row_bytes, row_bytes, stride, tensor.dtype)))
    needed.sort(key=lambda item: item[0])
    groups = []
    for number, shape in enumerate(dict.fromkeys(shape for _, _, shape in needed)):
        rows, row_bytes, stride, _ = shape
        chosen = [(layer, tensor) for layer, tensor, other in needed if other == shape]
        groups.append(
            PageTensors(
                name=entry.name.value if number == 0 else f"{entry.name.value}-{number}",
                tensors=tuple(tensor for _, tensor in chosen),
                last={layer: index for index, (layer, _) in enumerate(chosen)},
                rows=rows,
                row_bytes=row_bytes,
                stride=stride,
                num_pages=min(tensor.shape[0] for _, tensor in chosen) // rows,
            )
        )
    return groups


def pages_of(entry: DevicePoolEntry, indices: Tensor) -> list[int]:
    """The pages that slots are, `page_size` slots each.

    Raises `ValueError` if they are not whole pages of the pool.
    """
    rows: int = entry._row_span
    return [row // rows for row in entry.prepare_locations(indices)]


def is_trailing(transfer: PoolTransfer) -> bool:
    """Whether only a window before the end of the prefix is needed, and not all pages.

    Raises `Invalid` for policies that came later.
    """
    if transfer.hit_policy not in (PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES):
        raise Invalid(f"kvtier's linker does not know the policy {transfer.hit_policy}")
    return bool(transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES)


def whole_pages(transfers: Sequence[PoolTransfer]) -> list[str]:
    """The keys of the pages that the prefix is made of."""
    for transfer in transfers:
        if transfer.name == PoolName.KV:
            return list(transfer.keys or ())
    return []
