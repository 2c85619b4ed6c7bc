"""kvtier in vLLM: one line of `--kv-transfer-config` names `KvtierConnector` of this module.

```text
 scheduler process                                   worker process, one per rank
 KvtierConnector ── KvtierManager                    KvtierConnector ── KvtierWorker ── Rank
                     │  what is asked  ── orders ──►                      jobs           stores, pools
                     ◄── answers, failures ───────                                       HBM ◄► host ◄► NVMe, remote
```

vLLM's `OffloadingConnector` keeps the rules of sliding windows, hybrid models, preemption and events; the manager
answers its look-ups, and the worker of each rank owns the tiers and copies between them and vLLM's paged tensors.
"""

from kvtier.vllm.connector import KvtierConnector
from kvtier.vllm.spec import KvtierSpec

__all__ = ["KvtierConnector", "KvtierSpec"]
