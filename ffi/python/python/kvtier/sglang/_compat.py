"""All that comes from SGLang, of which much moves between versions. Written for 0.5.23."""

from typing import Any

# First: SGLang's modules import each other in a circle, and from here it closes.
import sglang.srt.managers.cache_controller  # noqa: F401
import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager as WeightUpdater
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)
from sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler import (
    DevicePoolEntry,
    DevicePoolGroup,
    resolve_hybrid_device_pool_group,
)
from sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler import _mamba_device_pool_entry as mamba_device_pool_entry
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host import HostKVCache as HostPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.mem_cache.unified_cache.unified_cache_linker import UnifiedCacheLinker
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache as RadixCache
from sglang.srt.observability.metrics_collector import StorageMetrics
from sglang.srt.runtime_context import get_parallel, get_server_args
from torch import Tensor

__all__ = [
    "HIP",
    "DevicePoolEntry",
    "DevicePoolGroup",
    "HiCacheStorage",
    "HiCacheStorageConfig",
    "HiCacheStorageExtraInfo",
    "HostPool",
    "HybridLinearKVPool",
    "MHATokenToKVPool",
    "MLATokenToKVPool",
    "PoolHitPolicy",
    "PoolName",
    "PoolTransfer",
    "PoolTransferResult",
    "RadixCache",
    "SWAKVPool",
    "ScheduleBatch",
    "Scheduler",
    "StorageMetrics",
    "Tensor",
    "UnifiedCacheLinker",
    "WeightUpdater",
    "attention_rank",
    "current_stream",
    "mamba_device_pool_entry",
    "replica",
    "resolve_hybrid_device_pool_group",
    "setting",
]

HIP = torch.version.hip is not None
"""Whether FP8 is AMD's, which has the same names and other numbers."""


def setting(name: str) -> Any:  # noqa: ANN401
    """A flag of the server; `None` where there is no server, or no such flag."""
    try:
        return getattr(get_server_args(), name, None)
    except ValueError:
        return None


def attention_rank() -> tuple[int, int]:
    """Which of how many parts of the heads this process has. With data-parallel attention, several have the same."""
    parallel = get_parallel()
    return parallel.attn_tp_rank, parallel.attn_tp_size


def current_stream() -> int:
    """CUDA's handle of the stream that this thread works in."""
    stream: int = torch.cuda.current_stream().cuda_stream
    return stream


def replica() -> int:
    """Which of the servers of a data-parallel group this is, or of the groups of ranks of which each has all heads."""
    try:
        parallel = get_parallel()
        return getattr(parallel, "dp_rank", None) or getattr(parallel, "attn_dp_rank", None) or 0
    except (RuntimeError, ValueError):
        return 0
