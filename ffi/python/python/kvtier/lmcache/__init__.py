"""kvtier as an L2 adapter of LMCache's multi-process server.

One line of configuration:

```json
{"type": "plugin", "module_path": "kvtier.lmcache", "class_name": "KvtierAdapter",
 "adapter_params": {"host": "8GiB", "path": "/mnt/nvme/kv", "nvme": "1TiB"}}
```

```text
  LMCache's controllers ──► adapter ──► catalogue (what is stored, and how large) ──► journal
                              │  └────► locks (what must not be deleted now)
                              └───────► shelves (a kvtier.Store for each size of object)
```

It is a plugin, not a native plugin: LMCache wraps those in a thread that sorts their completions, and a `kvtier.Queue`
is already the descriptor that LMCache's own threads wait for.
"""

from kvtier.lmcache.adapter import KvtierAdapter

__all__ = ["KvtierAdapter"]
