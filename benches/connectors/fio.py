"""The disk's limit, in the same rounds: the same number of bytes in transfers of a block each, 16 in flight."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

DEPTH = 16


def run(directory: Path, size: int, blocks: int) -> dict[str, Any]:
    """One round."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    common = [
        "fio",
        "--name=limit",
        f"--filename={directory}/limit",
        f"--bs={size}",
        f"--size={size * blocks}",
        f"--iodepth={DEPTH}",
        "--ioengine=io_uring",
        "--direct=1",
        "--output-format=json",
    ]
    result = {}
    for what, options, direction in (
        ("durable", ["--rw=write", "--fallocate=native", "--end_fsync=1"], "write"),
        ("cold", ["--rw=randread"], "read"),
    ):
        done = subprocess.run([*common, *options], capture_output=True, text=True, check=True)
        job = json.loads(done.stdout)["jobs"][0]
        seconds = job["job_runtime"] / 1e3
        moved = job[direction]["io_bytes"]
        if moved != size * blocks:
            raise RuntimeError(f"fio moved {moved} bytes")
        result[what] = {"seconds": seconds, "processor": seconds * (job["usr_cpu"] + job["sys_cpu"]) / 100}
    shutil.rmtree(directory)
    return result
