"""What of vLLM's tiering kvtier's tier is made of, beside `_compat`: only who configures a tier needs it. For 0.33."""

from vllm.v1.kv_offload.base import Locality
from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from kvtier.vllm._compat import OffloadKey, ReqContext

__all__ = ["BackpressureDetector", "JobResult", "Locality", "SecondaryTierManager", "TransferJob", "keys_of"]


def keys_of(context: ReqContext) -> dict[OffloadKey, int]:
    """The keys of a request so far and the token each ends at, group by group, first token first.

    vLLM has a question for one key (`get_offload_key_position`) and none for its neighbours.
    """
    positions: dict[OffloadKey, int] = getattr(context, "_offload_key_positions", {})
    return positions
