"""LMCache's multi-process server, started with the line of `docs/lmcache.md`, and its own client against it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from page import line_of

from manager import until

LMCACHE = str(Path(sys.executable).with_name("lmcache"))
ENV = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "LMCACHE_LOG_LEVEL": "WARNING", "LMCACHE_DISABLE_BANNER": "1"}


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return answer.read().decode()


def answers(server, port):
    assert server.poll() is None, "the server has died"
    try:
        return ask(port, "/healthcheck")
    except OSError:
        return None


@contextmanager
def serving(path, log):
    """A server whose L1 keeps nothing, so that all that is warm is in kvtier. Ends by SIGKILL."""
    rpc, http, prometheus = free_ports(3)
    replaced = {"lmcache server": f"{LMCACHE} server", "-gb 64": "-gb 0.25"}
    replaced |= {"/mnt/nvme/kv": str(path), "8GiB": "32MiB", "1TiB": "256MiB"}
    server = subprocess.Popen(
        [
            *line_of("lmcache.md", "lmcache server", replaced),
            *("--no-l1-use-lazy", "--eviction-policy", "noop", "--l2-store-policy", "skip_l1", "--host", "127.0.0.1"),
            *("--port", str(rpc), "--http-host", "127.0.0.1", "--http-port", str(http)),
            *("--prometheus-port", str(prometheus), "--chunk-size", "256"),
        ],
        env=ENV,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        until(lambda: answers(server, http), "the server does not answer")
        yield rpc, http
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def bench(rpc, http, out):
    """Three requests of 1024 tokens: looked up, stored, looked up, retrieved, and their checksums compared."""
    done = subprocess.run(
        [
            *(LMCACHE, "bench", "server", "--rpc-url", f"tcp://127.0.0.1:{rpc}", "--url", f"http://127.0.0.1:{http}"),
            *("--mode", "cpu", "--transfer-mode", "lmcache_driven", "--num-tokens", "1024", "--end", "3"),
            *("--interval", "0.5", "--kvcache-shape-spec", "(2,256,16,2,64):bfloat16:4"),
            *("--format", "json", "--output", str(out)),
        ],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())["metrics"]


def metric(http, name):
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([\d.]+)$", ask(http, "/metrics"), re.MULTILINE)
    return sum(float(one) for one in found)


def test_the_server_serves_from_kvtier_also_after_it_was_killed(tmp_path):
    path = tmp_path / "kv"
    with (tmp_path / "server.log").open("w") as log:
        for life in range(2):
            with serving(path, log) as (rpc, http):
                stored = json.loads(ask(http, "/cache/objects?tier=l2"))["entries"]
                assert len(stored) == (12 if life else 0)
                results = bench(rpc, http, tmp_path / "out.json")
                assert results["warm_retrieve"]["warm_retrieve_count"] == 3
                # The client compares what it retrieves with what it has stored, so only in the first life.
                assert results["results"]["checksum_fail"] == 0
                assert results["results"]["checksum_ok"] == (0 if life else 3)
                # In the second life the first look-up of each prompt hits, too. A chunk whose store is under way is
                # still in L1.
                least = 12 if life else 1
                until(
                    lambda http=http, least=least: metric(http, "lmcache_mp_lookup_hit_l2_keys_total") >= least,
                    "nothing came from kvtier",
                )

                def status(http=http):
                    return json.loads(ask(http, "/status"))["storage_manager"]["l2_adapters"][0]

                until(lambda status=status: not status()["tasks_under_way"]["store"], "writing to NVMe hangs")
                assert status()["type"] == "kvtier"
                assert status()["objects"] == 12
                assert status()["complaints"] == {}
