"""vLLM's `OffloadingConnector` with what its specs cannot say."""

from typing import Any

from kvtier.errors import Invalid
from kvtier.vllm._compat import (
    KVCacheConfig,
    KVConnectorOutput,
    KVConnectorRole,
    KVConnectorTransferResults,
    OffloadingConnector,
    OffloadingConnectorMetadata,
    OffloadingConnectorStats,
    OffloadingWorkerMetadata,
    Request,
    RequestOffloadState,
    SchedulerOutput,
    VllmConfig,
    current_platform,
)
from kvtier.vllm.identity import namespace
from kvtier.vllm.manager import KvtierManager
from kvtier.vllm.messages import StepMetadata, StepResults
from kvtier.vllm.metrics import WorkerStats
from kvtier.vllm.prefill import PrefillClock
from kvtier.vllm.spec import KvtierSpec, options_of
from kvtier.vllm.worker import KvtierWorker


class KvtierConnector(OffloadingConnector):
    """Adds failed loads that are recomputed, look-ups in batches, load-or-recompute, and the layout that copies best.

    Named by `--kv-transfer-config`:

    ```json
    {"kv_connector": "KvtierConnector", "kv_connector_module_path": "kvtier.vllm", "kv_role": "kv_both",
     "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"host": "8GiB"}}
    ```
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        transfer = vllm_config.kv_transfer_config
        if transfer.kv_load_failure_policy != "recompute":
            raise Invalid('kvtier needs "kv_load_failure_policy": "recompute": a cache may lose what it keeps')
        _name_spec(vllm_config)
        self._options = options_of(transfer.kv_connector_extra_config)
        super().__init__(vllm_config, role, kv_cache_config)
        self._bad_blocks: set[int] = set()
        self._failed_loads: dict[str, bool] = {}
        # Blocks are told apart by their numbers only where there is one group.
        self._single_group = len(kv_cache_config.kv_cache_groups) == 1
        weighs = bool(self._options.remotes) or self._options.weigh_nvme
        self._clock = PrefillClock() if weighs and role == KVConnectorRole.SCHEDULER else None
        self._timed: int | None = None
        self._worker_stats: WorkerStats | None = None

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        """A block of all layers in one piece, which vLLM drops where the attention backend cannot have it.

        On a CPU it is dropped here: pieces do not matter there, and the backend for MLA says that it can and cannot.
        """
        return "LBHNC" if current_platform.is_cpu() else "BLHNC"

    # In the scheduler.

    @property
    def _manager(self) -> KvtierManager:
        manager = self.scheduler.manager
        assert isinstance(manager, KvtierManager)
        return manager

    def _chains(self, state: RequestOffloadState, first: int) -> list[list[bytes]]:
        """Keys behind so many tokens, for each group."""
        groups = zip(state.config.kv_group_configs, state.group_states, strict=True)
        return [group.offload_keys[first // config.tokens_per_chunk :] for config, group in groups]

    def on_new_request(self, request: Request) -> None:
        """Its keys are asked about with the next request that has its turn."""
        super().on_new_request(request)
        if not request.skip_reading_prefix_cache:
            state = self.scheduler._req_status[request.request_id]
            state.update_offload_keys()
            self._manager.expect(request.request_id, self._chains(state, 0))

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Asks about all keys of the request at once, before vLLM asks key by key."""
        state = self.scheduler._req_status[request.request_id]
        if not request.skip_reading_prefix_cache and not state.transfer_jobs:
            state.update_offload_keys()
            self._manager.look(request.request_id, num_computed_tokens, self._chains(state, num_computed_tokens))
        tokens, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return tokens, later

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        """Orders for the ranks go with the step."""
        timed = None
        if self._clock is not None:
            timed = self._clock.begin(scheduler_output, self.scheduler._req_status)
        meta = super().build_connector_meta(scheduler_output)
        assert isinstance(meta, OffloadingConnectorMetadata)
        return StepMetadata(meta.load_jobs, meta.store_jobs, meta.jobs_to_flush, self._manager.take_orders(), timed)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Answers and failures of the ranks come with the output."""
        results = connector_output.kv_connector_worker_meta
        if isinstance(results, StepResults):
            self._manager.hear(results)
            if self._clock is not None and (passes := self._clock.end(results.timed)):
                self._manager.observed(passes)
        super().update_connector_output(connector_output)

    # In the workers.

    @property
    def _worker(self) -> KvtierWorker:
        assert self.connector_worker is not None
        assert isinstance(self.connector_worker.worker, KvtierWorker)
        return self.connector_worker.worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Opens the tiers and registers the tensors."""
        assert self.connector_worker is not None
        spec = self.connector_worker.spec
        assert isinstance(spec, KvtierSpec)
        spec.namespace = namespace(self._vllm_config)
        super().register_kv_caches(kv_caches)
        self._worker_stats = WorkerStats(self._worker, spec.config.parallel.rank)

    def handle_preemptions(self, kv_connector_metadata: OffloadingConnectorMetadata) -> None:
        """Before the step: stores of the last one are submitted here."""
        self._obey(kv_connector_metadata)
        super().handle_preemptions(kv_connector_metadata)

    def bind_connector_metadata(self, connector_metadata: OffloadingConnectorMetadata) -> None:
        """Every step passes here, also those without a forward pass."""
        self._obey(connector_metadata)
        super().bind_connector_metadata(connector_metadata)

    def _obey(self, meta: OffloadingConnectorMetadata) -> None:
        if not isinstance(meta, StepMetadata):
            return
        if meta.orders is not None:
            orders, meta.orders = meta.orders, None
            self._worker.rank.obey(orders)
        self._timed = meta.timed if meta.timed is not None else self._timed

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Failed loads are told to the scheduler, which recomputes: from the first bad block on, or all."""
        results = super().get_transfer_results(finished_req_ids)
        for failed in self._worker.take_failed_loads():
            self._failed_loads[failed.request] = failed.late
            if self._single_group:
                self._bad_blocks |= failed.blocks
            else:
                results.failed_recving.add(failed.request)
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Called after `get_transfer_results`, in the same step."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def build_connector_worker_meta(self) -> OffloadingWorkerMetadata | None:
        """What the scheduler learns with this step's output."""
        if self.connector_worker is None:
            return None
        done = super().build_connector_worker_meta() or OffloadingWorkerMetadata()
        answers = {ask: (1, found) for ask, found in self._worker.rank.take_answers().items()}
        results = StepResults(done.completed_jobs, done.transfer_stats, answers, self._failed_loads)
        results.not_stored, results.timed = self._worker.take_not_stored(), self._timed
        self._failed_loads, self._timed = {}, None
        return None if results == StepResults() else results

    def get_kv_connector_stats(self) -> OffloadingConnectorStats | None:
        """Of the scheduler or of the rank, whichever this is."""
        if self._worker_stats is not None:
            return self._worker_stats.take()
        stats = super().get_kv_connector_stats()
        assert stats is None or isinstance(stats, OffloadingConnectorStats)
        return stats

    @classmethod
    def build_prom_metrics(cls, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """In the front end, which has no connector."""
        _name_spec(vllm_config)
        return super().build_prom_metrics(vllm_config, *args, **kwargs)


def _name_spec(vllm_config: VllmConfig) -> None:
    """Lets vLLM find the spec by its configuration."""
    extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
    extra_config["spec_name"] = "KvtierSpec"
    extra_config["spec_module_path"] = "kvtier.vllm"
