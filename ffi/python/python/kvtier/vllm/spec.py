"""What vLLM's `OffloadingConnector` builds: our manager in the scheduler, our worker in each rank."""

from collections.abc import Mapping
from typing import Any

from kvtier import Store
from kvtier.errors import Invalid
from kvtier.options import StoreOptions
from kvtier.vllm import metrics
from kvtier.vllm._compat import (
    CanonicalKVCaches,
    OffloadingConfig,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    current_stream,
)
from kvtier.vllm.identity import layout
from kvtier.vllm.manager import KvtierManager
from kvtier.vllm.parts import Part, parts_of
from kvtier.vllm.rank import Group, open_rank
from kvtier.vllm.worker import KvtierWorker

_OF_VLLM = ("spec_name", "spec_module_path", "offload_prompt_only", "self_describing_kv_events")
"""Options in the same mapping that are vLLM's."""


def options_of(extra_config: Mapping[str, Any]) -> StoreOptions:
    """Reads `kv_connector_extra_config`. Raises `kvtier.Invalid`."""
    return StoreOptions.parse({name: value for name, value in extra_config.items() if name not in _OF_VLLM})


class KvtierSpec(OffloadingSpec):
    """Use it by way of `KvtierConnector`: alone, a failed load would end the engine."""

    namespace: Mapping[str, object] | None = None
    """What the worker's blocks depend on; the connector sets it."""

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """For vLLM's Prometheus registry."""
        return metrics.definitions()

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        self.options = options_of(config.extra_config)
        self._manager: KvtierManager | None = None

    def get_manager(self) -> OffloadingManager:
        """In the scheduler's process."""
        if self._manager is None:
            self._manager = KvtierManager(self.config, self.options)
        return self._manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> KvtierWorker:
        """In each worker's process: opens the tiers."""
        namespace = self.namespace
        if namespace is None:
            raise Invalid('KvtierSpec belongs to the connector: use "kv_connector": "KvtierConnector"')
        groups = self.config.groups
        parts = parts_of(kv_caches, [group.group_id for group in groups])
        tokens = {group.group_id: group.tokens_per_block for group in groups}
        parallel = self.config.parallel

        def open_store(number: int, part: Part, share: float) -> Store:
            per_block = {tokens[group] for group in part.groups}
            weighs = bool(self.options.remotes) or self.options.weigh_nvme
            of_groups = ["{}:{}:{}".format(g.group_id, g.tokens_per_block, "+".join(g.layer_names)) for g in groups]
            return self.options.open(
                # vLLM's replicas on one machine have one configuration, and so have models that take turns.
                part=f"vllm-dp{parallel.data_parallel_index}-rank{parallel.rank}of{parallel.world_size}"
                f"-part{number}-{part.block_bytes}",
                share=share,
                block_bytes=part.block_bytes,
                model=self.config.model.name,
                layout=layout(
                    self.config,
                    **namespace,
                    part=number,
                    groups="/".join(of_groups),
                    page=part.page,
                    tensors=len(part.starts),
                ),
                tokens_per_block=min(per_block) if weighs else None,
            )

        of_rank = {g.group_id: Group(g.tokens_per_block, g.sliding_window_size_in_chunks) for g in groups}
        rank = open_rank(self.config.engine_id, self.options, parts, of_rank, _streams(parts), open_store)
        return KvtierWorker(rank)


def _streams(parts: list[Part]) -> list[int]:
    """The stream in which vLLM computes: copies wait for what is queued in it."""
    if all(part.device is None for part in parts):
        return []
    return [current_stream().cuda_stream]
