# ruff: noqa: ANN401 - what is SGLang's has no types here
"""Which part of which model's KV cache this process has."""

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from kvtier.options import describe


@dataclass(frozen=True, slots=True)
class Rank:
    """One process among those of the server."""

    directory: str
    """Its own name, for a directory of its own."""
    model: str
    layout: str
    """What decides the meaning of its bytes, apart from the tensors' shapes."""
    several: bool
    """Whether other processes have to agree on what is loaded."""


def this_rank(server_args: Any, params: Any) -> Rank:
    """As SGLang has set up this process."""
    parallel = get_parallel()
    tp, tp_size = parallel.tp_rank, parallel.tp_size
    shard, shards = tp, tp_size
    group = params.attn_tp_cache_group or params.tp_cache_group
    if torch.distributed.is_available() and torch.distributed.is_initialized() and group is not None:
        # With data-parallel attention, several ranks of the model have the same heads.
        shard, shards = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    pp, cp = (params.pp_rank, params.pp_size), (params.attn_cp_rank, params.attn_cp_size)
    names = [f"tp{tp}of{tp_size}"]
    names += [f"{name}{rank}of{size}" for name, (rank, size) in (("pp", pp), ("cp", cp)) if size > 1]
    if parallel.dp_rank is not None:
        names.append(f"dp{parallel.dp_rank}")
    layout = describe(
        runtime="sglang-linker",
        tp=f"{shard}/{shards}",
        pp="/".join(map(str, pp)),
        cp="/".join(map(str, cp)),
        page=params.page_size,
        kv=server_args.kv_cache_dtype,
        revision=server_args.revision,
        dtype=server_args.dtype,
        quantization=server_args.quantization,
        override=server_args.json_model_override_args,
        seed=server_args.random_seed if server_args.load_format == "dummy" else None,
        eagle=params.is_eagle,
    )
    several = tp_size * pp[1] * cp[1] > 1
    return Rank("-".join(names), str(server_args.model_path), layout, several)
