"""What vLLM's runner for CPUs lacks for pipeline parallelism: `worker_extension_cls` has it imported in each worker."""

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_sync_and_gather = GPUModelRunner.sync_and_gather_intermediate_tensors


def _with_buffers(self: Any, *given: Any, **named: Any) -> Any:
    """The buffers of a later stage, which are made in the warm-up of a GPU only."""
    if self.intermediate_tensors is None:
        self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
            batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
        )
    return _sync_and_gather(self, *given, **named)


GPUModelRunner.sync_and_gather_intermediate_tensors = _with_buffers  # type: ignore[method-assign]


class Extension:
    """Adds nothing itself."""
