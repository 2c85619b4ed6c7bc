"""The line of `docs/vllm.md`, typed into a shell."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from page import line_of

from models import FAMILIES, prompt

ON_A_CPU = [
    "--dtype",
    "float32",
    "--enforce-eager",
    "--max-model-len",
    "2048",
    "--kv-cache-memory-bytes",
    str(32 << 20),
]
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    # As it is by default, and with the endpoint that resets the prefix cache.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}


def call(url: str, body: object = None, *, post: bool = False) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST" if post else None)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(answer.read().decode())


@contextmanager
def serving(line: list[str], log: Path) -> Iterator[str]:
    """Starts the line, and yields the address that it serves at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*line, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | ENVIRONMENT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 600
        while True:
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            try:
                call(f"{url}/health")
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def metric(url: str, name: str) -> float:
    lines = call(f"{url}/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def until_counted(url: str, name: str, count: int) -> None:
    """vLLM collects what transfers report while it steps: requests too short to be cached make it step."""
    for _ in range(600):
        if metric(url, name) == count:
            return
        call(f"{url}/v1/completions", {"model": "small", "prompt": [5, 6, 7], "max_tokens": 2})
    raise AssertionError(f"{name} is {metric(url, name)}, not {count}")


def test_the_line_of_the_page_works_as_written(model_of: Callable[[str], Path], tmp_path: Path) -> None:
    replaced = {"MODEL": str(model_of("gqa")), "/mnt/nvme/kv": str(tmp_path / "kv"), "1TiB": "1GiB"}
    line = line_of("vllm.md", "vllm serve", replaced)
    line += [*ON_A_CPU, "--block-size", str(FAMILIES["gqa"].tokens_per_block), "--served-model-name", "small"]
    ask = {"model": "small", "prompt": prompt(500, of=1), "max_tokens": 8, "temperature": 0}
    with serving(line, tmp_path / "log") as url:
        first = json.loads(call(f"{url}/v1/completions", ask))["choices"][0]["text"]
        until_counted(url, "vllm:kvtier_blocks_stored_total", 500 // 32)
        call(f"{url}/reset_prefix_cache", post=True)
        again = json.loads(call(f"{url}/v1/completions", ask))["choices"][0]["text"]
        assert again == first
        assert metric(url, "vllm:external_prefix_cache_hits_total") == 500 // 32 * 32
        until_counted(url, "vllm:kvtier_blocks_loaded_total", 500 // 32)
