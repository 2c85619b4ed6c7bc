"""vLLM's tiering where there is no GPU.

One part of `TieringOffloadingSpec` needs a GPU: the worker that copies between KV cache and CPU tier. Here one replaces
it that copies between the same tensors at once, in Python. All else is vLLM's.
"""

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CpuTieringSpec(TieringOffloadingSpec):
    """Differs in its worker alone."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """Maps the CPU tier's memory as vLLM's own worker does."""
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = _CopyWorker(kv_caches, region, self.blocks_per_chunk)
        return self._worker


class _CopyWorker(OffloadingWorker):
    def __init__(self, kv_caches: CanonicalKVCaches, region: SharedOffloadRegion, blocks_per_chunk: int) -> None:
        self._caches, self._region, self._blocks_per_chunk = kv_caches, region, blocks_per_chunk
        self._rows = [
            region.create_next_worker_view(tensor.page_size_bytes * blocks_per_chunk) for tensor in kv_caches.tensors
        ]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: CPULoadStoreSpec) -> bool:
        for page, part in self._pairs(src_spec, dst_spec):
            part.copy_(page)
        self._finished.append(TransferResult(job_id, True))
        return True

    def submit_load(
        self, job_id: int, src_spec: CPULoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        for page, part in self._pairs(dst_spec, src_spec):
            page.copy_(part)
        self._finished.append(TransferResult(job_id, True))
        return True

    def _pairs(self, blocks: GPULoadStoreSpec, chunks: CPULoadStoreSpec):
        """Each page of the KV cache with its part of a row."""
        block, chunk = 0, 0
        for group, (count, start) in enumerate(zip(blocks.group_sizes, blocks.block_indices, strict=True)):
            if count == 0:
                continue
            skipped = start % self._blocks_per_chunk
            for ref in self._caches.group_data_refs[group]:
                tensor, page = self._caches.tensors[ref.tensor_idx].tensor, ref.page_size_bytes
                for place in range(count):
                    row, part = divmod(skipped + place, self._blocks_per_chunk)
                    row = self._rows[ref.tensor_idx][int(chunks.chunk_ids[chunk + row])]
                    yield (
                        tensor[int(blocks.block_ids[block + place])].view(torch.int8)[:page],
                        row[part * page : (part + 1) * page],
                    )
            block += count
            chunk += -(-(skipped + count) // self._blocks_per_chunk)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is ever under way."""

    def shutdown(self) -> None:
        self._rows.clear()
        self._region.cleanup()
