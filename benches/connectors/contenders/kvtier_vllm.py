"""kvtier as a secondary tier of vLLM's own tiering."""

from __future__ import annotations

from kvtier.vllm.tier import KvtierTier
from vllm.v1.kv_offload.tiering.base import SecondaryTierManager

from contenders import stores
from contenders.vllm import VLLM


class Kvtier(VLLM):
    """In the place of `fs`."""

    promise, checks, cold = stores.ABOUT["promise"], stores.ABOUT["checks"], stores.ABOUT["cold"]

    def tier(self) -> SecondaryTierManager:
        given = stores.options(self.directory, self.size, self.blocks)
        return KvtierTier(self.spec(), self._primary, "kvtier", **given)

    def sync(self) -> None:
        stores.flush()

    def cool(self) -> None:
        self.reopen()
