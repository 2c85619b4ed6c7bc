"""All that `kvtier.vllm.tier` takes from vLLM, and that changes between minor versions. Written for 0.33."""

from vllm import __version__ as version
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingCounterMetadata,
    OffloadingEvent,
    OffloadingGaugeMetadata,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.config import OffloadingConfig
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

MINOR = ".".join(version.split(".")[:2])
"""Another minor version may hash blocks, or arrange them, in another way: it is part of the namespace."""


def keys_of(context: ReqContext) -> dict[OffloadKey, int]:
    """The keys of a request so far and the token each ends at, group by group, first token first.

    vLLM has a question for one key (`get_offload_key_position`) and none for its neighbours.
    """
    return getattr(context, "_offload_key_positions", {})


__all__ = [
    "MINOR",
    "BackpressureDetector",
    "JobResult",
    "Locality",
    "LookupResult",
    "Medium",
    "OffloadKey",
    "OffloadingConfig",
    "OffloadingConnectorStats",
    "OffloadingCounterMetadata",
    "OffloadingEvent",
    "OffloadingGaugeMetadata",
    "OffloadingMetricMetadata",
    "OffloadingSpec",
    "ReqContext",
    "RequestOffloadingContext",
    "ScheduleEndContext",
    "SecondaryTierManager",
    "TransferJob",
    "get_offload_group_idx",
    "keys_of",
]
