"""kvtier keeps KV-cache blocks in tiers: pinned host memory, local NVMe.

Start at `Store`. Blocks are named by keys of the runtime and live in its own buffers:

>>> import kvtier
>>> with kvtier.Store(4096, 1 << 20, model="llama", revision="1") as store:
...     page = bytearray(b"kv" * 2048)
...     store.put([b"hash of the page"], page).wait()
Summary(keys=1, done=1, prefix=1)
"""

from kvtier._enums import KeyStatus, Presence, Removal
from kvtier._kvtier import Keys, Layout, Pool, Queue, Runs, Store, Summary, Ticket, __version__, build_info
from kvtier.errors import (
    Busy,
    Closed,
    Error,
    Forked,
    Invalid,
    LoadFailed,
    OpenFailed,
    Timeout,
    Unclean,
)

__all__ = [
    "Busy",
    "Closed",
    "Error",
    "Forked",
    "Invalid",
    "KeyStatus",
    "Keys",
    "Layout",
    "LoadFailed",
    "OpenFailed",
    "Pool",
    "Presence",
    "Queue",
    "Removal",
    "Runs",
    "Store",
    "Summary",
    "Ticket",
    "Timeout",
    "Unclean",
    "__version__",
    "build_info",
]
