"""Requests through LMCache's storage manager, with everything that can go wrong going wrong.

A few hundred by default; 10,000 with `KVTIER_SOAK=1`. Each process closes and opens storage managers on the same
directory again and again, and all but the last end by killing themselves in the middle of a request's stores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SOAK = bool(os.environ.get("KVTIER_SOAK"))
PROCESSES = 4 if SOAK else 2
REQUESTS = 2_500 if SOAK else 120
LIFE = 250 if SOAK else 40
# Of every storage manager in soak_life.py.
L1_MIB = 4


def test_soak(tmp_path):
    total, hits, told = 0, 0, []
    for seed in range(PROCESSES):
        last = seed == PROCESSES - 1
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "soak_life.py"]
            + [str(word) for word in (tmp_path, seed, REQUESTS, LIFE, int(not last))],
            cwd=Path(__file__).parent,
            # Refused stores are part of it.
            env={**os.environ, "LMCACHE_LOG_LEVEL": "CRITICAL", "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            print(line)
        assert done.returncode == (0 if last else -9), done.returncode
        lives = [line for line in lines if "rss_mib" in line]
        total += max(line.get("done", 0) for line in lines)
        hits += sum(line.get("hits", 0) for line in lines)
        told += lines
        assert all(line["locked_objects"] == line["pins"] == 0 for line in lives)
        # What the first storage manager of a process brings with it stays: threads of LMCache's and torch's.
        settled = lives[1:]
        for name in ("threads", "descriptors"):
            assert len({line[name] for line in settled}) <= 1, [line[name] for line in lives]
        # LMCache never lets go of a storage manager and of its L1, also over its own adapters. The rest is ours.
        if settled:
            grown = settled[-1]["rss_mib"] - settled[0]["rss_mib"]
            assert grown <= (L1_MIB + 1) * len(settled), [line["rss_mib"] for line in lives]
    assert sum(line.get("wrong", 0) for line in told) == 0
    # It was no walk in the park, and not for nothing.
    for name in ("flips", "deletions", "refused", "complaints", "abandoned"):
        assert sum(line.get(name, 0) for line in told) > 0, name
    assert hits > total, "nothing came from kvtier"
    print(f"{total} requests, {hits} objects from kvtier")
