"""LMCache's own checks and benchmark, run as LMCache's users run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from driver import spec


def run(*args):
    env = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "ERROR"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *args],
        capture_output=True,
        text=True,
        env=env,
        timeout=200,
        check=False,
    )


def test_the_check_of_adapters_passes(tmp_path):
    # In memory; on NVMe with more objects than memory holds; and small ones of an odd size.
    lines = [spec(host="64MiB"), spec(tmp_path, host="16MiB", nvme="256MiB")]
    done = run(
        *(
            "-m",
            "lmcache.v1.basic_check",
            "--mode",
            "test_l2_adapter",
            "--num-keys",
            "24",
            "--kv-dtype",
            "bfloat16",
        ),
        *("--obj-size", str(256 << 10)),
        *(word for line in lines for word in ("--l2-adapter", json.dumps(line))),
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^\| (LOOKUP \(absent\)|STORE|LOOKUP \(exist\)|LOAD) .*?\|\s*(\d+)/(\d+) \|",
        done.stdout,
        re.M,
    )
    wanted = [(name, "24", "24") for name in ("LOOKUP (absent)", "STORE", "LOOKUP (exist)", "LOAD")]
    assert rows == wanted * len(lines), done.stdout
    assert "Failed" not in done.stdout


@pytest.mark.parametrize("in_flight", [1, 4])
def test_the_benchmark_verifies_what_it_loads(tmp_path, in_flight):
    out = tmp_path / "out.json"
    done = run(
        *(str(Path(sys.executable).with_name("lmcache")), "bench", "l2"),
        *(
            "--l2-adapter",
            json.dumps(spec(tmp_path / "kv", host="24MiB", nvme="512MiB")),
        ),
        *(
            "--num-keys",
            "8",
            "--data-size-kb",
            "512",
            "--in-flight",
            str(in_flight),
            "--rounds",
            "3",
        ),
        *(
            "--l1-align-bytes",
            "4096",
            "--warmup-rounds",
            "1",
            "--lookup-max-hit-rate",
            "0.5",
            "--no-skip-verify",
        ),
        *("--format", "json", "--output", str(out)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISMATCH" not in done.stdout
    assert "data verified OK" in done.stdout
    operations = [one for name, one in json.loads(out.read_text())["metrics"].items() if name.startswith("op_")]
    totals = {one["operation"]: (one["total_success"], one["total_keys"]) for one in operations}
    assert totals["Store"][0] == totals["Store"][1] > 0
    assert totals["Load"][0] == totals["Load"][1] > 0
