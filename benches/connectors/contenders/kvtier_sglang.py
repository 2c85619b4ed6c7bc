"""kvtier as a storage backend of SGLang."""

from __future__ import annotations

from contenders import stores
from contenders.sglang import SGLang


class Kvtier(SGLang):
    """HiCache's `dynamic` backend without copies of SGLang's own, as the documentation configures it."""

    backend = "dynamic"
    promise, checks, cold = stores.ABOUT["promise"], stores.ABOUT["checks"], stores.ABOUT["cold"]

    def options(self) -> dict[str, object]:
        dynamic = {"backend_name": "kvtier", "module_path": "kvtier.sglang", "class_name": "KvtierStorage"}
        return dynamic | {"interface_v1": 1} | stores.options(self.directory, self.size, self.blocks)

    def sync(self) -> None:
        stores.flush()

    def cool(self) -> None:
        self.reopen()
