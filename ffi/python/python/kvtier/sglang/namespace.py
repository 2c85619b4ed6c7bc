"""What a page's key does not say, although its bytes depend on it.

SGLang names a page by the hash of its tokens (with adapter and salt) alone. Here the rest becomes part of kvtier's
namespace, so that a page that another model or rank wrote, or in another dtype or memory layout, is a miss.
"""

from dataclasses import dataclass

from kvtier.errors import Invalid
from kvtier.options import describe
from kvtier.sglang._compat import HIP, HiCacheStorageConfig, HostPool, PoolName, replica, setting

_NUMERICS = ("dtype", "kv_cache_dtype", "quantization", "json_model_override_args")
"""Flags of the server that change the numbers in the cache, and neither model nor weights."""
_DRAFT = ("speculative_draft_model_path", "speculative_draft_model_revision")
"""The model whose KV is in the pools for drafts, or in further layers of the others."""
_REPLICATED = (PoolName.KV.value, PoolName.INDEXER.value)
"""Pools of which all tensor-parallel ranks of an MLA model hold the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One process's place among those that hold parts of the same pages."""

    tp: tuple[int, int]
    """Rank and size."""
    pp: tuple[int, int]
    cp: tuple[int, int]
    replicated: bool
    """Whether the tensor-parallel ranks hold the same KV: a model with MLA."""
    dp: int
    """Which copy of the whole. It decides where pages are kept and not what they are."""

    @classmethod
    def of(cls, config: HiCacheStorageConfig) -> "Rank":
        """Reads it from the configuration; `Invalid` for topologies whose pages kvtier cannot name."""
        if config.dcp_size > 1:
            raise Invalid(
                "kvtier does not support decode context parallelism (dcp_size > 1): a page would be a part of one"
            )
        if config.should_split_heads:
            raise Invalid(
                "kvtier keeps a rank's page as a whole: without 'tp_lcm_size' servers of other tensor-parallel "
                "sizes do not share pages, and with it they would have to be split by heads"
            )
        return cls(
            tp=(config.tp_rank, config.tp_size),
            pp=(config.pp_rank, config.pp_size),
            cp=(config.attn_cp_rank, config.attn_cp_size),
            replicated=config.is_mla_model,
            dp=config.dp_rank or replica(),
        )

    def directory(self) -> str:
        """Where this process keeps its pages: two that run at once never have the same."""
        parts = [f"tp{self.tp[0]}of{self.tp[1]}"]
        parts += [f"{name}{at}of{size}" for name, (at, size) in (("pp", self.pp), ("cp", self.cp)) if size > 1]
        if self.dp:
            parts.append(f"dp{self.dp}")
        return "-".join(parts)


def pool_name(name: PoolName | str) -> str:
    """The text of a `PoolName`, which SGLang also passes as a text."""
    return str(getattr(name, "value", name))


def weights() -> str:
    """Which weights a server has that says nothing about their revision: those of that path."""
    return describe(path=setting("model_path"), revision=setting("revision"))


def _numerics() -> dict[str, object]:
    return {f"server_{flag}": setting(flag) for flag in _NUMERICS + _DRAFT}


def device_layout(rank: Rank, name: str, geometry: str, page_size: int) -> str:
    """All that the bytes of a device pool's page depend on, besides model and weights."""
    return describe(
        runtime="sglang-device/1",
        pool=name,
        geometry=geometry,
        page_size=page_size,
        tp="any" if rank.replicated and name in _REPLICATED else rank.tp,
        pp=rank.pp,
        cp=rank.cp,
        hip=HIP,
        **_numerics(),
    )


def layout(rank: Rank, name: str, pool: HostPool, sizes: tuple[int, ...]) -> str:
    """All that the bytes of a host pool's page depend on, besides model and weights.

    `sizes` are the lengths of a page's runs.
    """
    geometry = ("layout", "page_size", "dtype", "layer_num", "start_layer", "end_layer", "head_num", "head_dim")
    return describe(
        runtime="sglang/1",
        pool=name,
        kind=type(pool).__name__,
        runs=",".join(map(str, sizes)),
        tp="any" if rank.replicated and name in _REPLICATED else rank.tp,
        pp=rank.pp,
        cp=rank.cp,
        hip=HIP,
        **{field: getattr(pool, field, None) for field in geometry},
        **_numerics(),
    )
