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
from sglang.srt.mem_cache.pool_host import HostKVCache as HostPool
from sglang.srt.observability.metrics_collector import StorageMetrics
from sglang.srt.runtime_context import get_parallel, get_server_args
from torch import Tensor

__all__ = [
    "HIP",
    "HiCacheStorage",
    "HiCacheStorageConfig",
    "HiCacheStorageExtraInfo",
    "HostPool",
    "PoolHitPolicy",
    "PoolName",
    "PoolTransfer",
    "PoolTransferResult",
    "ScheduleBatch",
    "Scheduler",
    "StorageMetrics",
    "Tensor",
    "WeightUpdater",
    "replica",
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


def replica() -> int:
    """Which of the servers of a data-parallel group this is, of which each has all ranks."""
    try:
        return getattr(get_parallel(), "dp_rank", None) or 0
    except (RuntimeError, ValueError):
        return 0
