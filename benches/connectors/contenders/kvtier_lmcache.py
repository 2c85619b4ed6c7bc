"""kvtier as an L2 adapter of LMCache."""

from __future__ import annotations

from contenders import stores
from contenders.lmcache import LMCache


class Kvtier(LMCache):
    """The `plugin` of its documentation. It flushes in the background by itself."""

    promise, checks, cold = stores.ABOUT["promise"], stores.ABOUT["checks"], stores.ABOUT["cold"]

    def options(self) -> dict[str, object]:
        params = stores.options(self.directory, self.size, self.blocks) | {"objects": [self.size]}
        return {
            "type": "plugin",
            "module_path": "kvtier.lmcache",
            "class_name": "KvtierAdapter",
            "adapter_params": params,
        }

    def sync(self) -> None:
        stores.flush()

    def cool(self) -> None:
        self.reopen()
