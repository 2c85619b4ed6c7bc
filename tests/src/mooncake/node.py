"""A node that lends its memory to a Mooncake store until its input ends: node.py MASTER BYTES"""

import sys

from mooncake.store import MooncakeDistributedStore

store = MooncakeDistributedStore()
code = store.setup("127.0.0.1", "P2PHANDSHAKE", int(sys.argv[2]), 16 << 20, "tcp", "", sys.argv[1])
if code != 0:
    sys.exit(f"setup: {code}")
print("ready", flush=True)
sys.stdin.read()
store.close()
