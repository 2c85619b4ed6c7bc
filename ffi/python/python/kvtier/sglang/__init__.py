"""kvtier in SGLang: `KvtierStorage` is a storage backend of HiCache, `KvtierLinker` takes the place of HiCache.

```
--enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
'{"backend_name":"kvtier","module_path":"kvtier.sglang","class_name":"KvtierStorage","interface_v1":1,
  "host":"8GiB","path":"/mnt/nvme/kv","nvme":"1TiB"}'

--enable-unified-cache-external-linker --unified-cache-external-linker-backend dynamic
--unified-cache-external-linker-config '{"linker":"KvtierLinker","linker_module_path":"kvtier.sglang",
  "linker_extra_config":{"host":"8GiB","path":"/mnt/nvme/kv","nvme":"1TiB"}}'
```
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvtier.sglang.backend import KvtierStorage
    from kvtier.sglang.linker import KvtierLinker

__all__ = ["KvtierLinker", "KvtierStorage", "plugin"]


def plugin() -> None:
    """What SGLang calls in each of its processes (entry point `sglang.srt.plugins`).

    Updates of the weights are noticed from the start of a scheduler, also for storage that is attached afterwards.
    Storage backends cannot be registered by name: SGLang's list of their names is closed.
    """
    if "sglang.srt.managers.scheduler" in sys.modules:
        from kvtier.sglang.scheduler import watch

        watch()


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # SGLang is imported by whoever asks for what needs it.
    if name == "KvtierStorage":
        from kvtier.sglang.backend import KvtierStorage

        return KvtierStorage
    if name == "KvtierLinker":
        from kvtier.sglang.linker import KvtierLinker

        return KvtierLinker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
