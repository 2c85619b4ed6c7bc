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

It is a plugin, not a native plugin. Both are as fast, as both wait for the same copies. But what LMCache wraps a native
client in does not tell it sizes and dtypes, counts usage from zero after a restart, locks nothing in the store, waits
up to 30 s for a deletion, and needs a thread of Python to sort completions. The plugin needs none: a `kvtier.Queue` is
already the descriptor that LMCache's own threads wait for.
"""

from kvtier.lmcache.adapter import KvtierAdapter

__all__ = ["KvtierAdapter"]
