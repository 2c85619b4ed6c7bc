"""A real SGLang server on the CPU, with a small Llama, and a client for it."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weights import llama

HERE = Path(__file__).parent
PAGE = 64
"""Tokens of a page."""
DEVICE_TOKENS = 4096
"""Tokens that the device's pool holds: what is evicted from it is up to the tests."""
VOCABULARY = 1024
_ADMIN = "admin"
_FLAGS = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "page-size": PAGE,
    "max-total-tokens": DEVICE_TOKENS,
    "mem-fraction-static": 0.3,
    "host": "127.0.0.1",
    "admin-api-key": _ADMIN,
    "skip-tokenizer-init": True,
    "skip-server-warmup": True,
    "disable-overlap-schedule": True,
    # Or it polls as fast as it can.
    "sleep-on-idle": True,
    "enable-metrics": True,
    "enable-cache-report": True,
}


def prompt(seed: int, tokens: int) -> list[int]:
    """Random tokens: prompts of other seeds share no page."""
    return random.Random(seed).choices(range(10, VOCABULARY), k=tokens)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server generated, and from where it had the prompt's KV cache."""

    tokens: tuple[int, ...]
    device: int
    """Tokens of the prompt that were in the device's pool."""
    host: int
    """Tokens of the prompt that were in SGLang's host pool."""
    storage: int
    """Tokens of the prompt that came from the storage backend."""

    @property
    def cached(self) -> int:
        return self.device + self.host + self.storage


class Failed(Exception):
    """The server answered with an error."""


class Server:
    """One server process, until the end of the `with`."""

    def __init__(self, log: Path, flags: Mapping[str, object] = {}, environment: Mapping[str, str] = {}):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        command = [sys.executable, "-W", "ignore", "-m", "sglang.launch_server"]
        for name, value in {**_FLAGS, "model-path": llama(0), "port": port, **flags}.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        path = [str(HERE / "cpu"), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            # `ninja` is beside the interpreter.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(path),
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": "1",
            # Ranks find no NCCL, which asks for GPUs, and use gloo.
            "SGLANG_NCCL_SO_PATH": "/dev/null",
            **environment,
        }
        with log.open("wb") as output:
            # A group of its own: the scheduler and the detokenizer are processes too.
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | variables, start_new_session=True
            )

    def wait(self, seconds: float = 600) -> None:
        """Until it serves."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                # Not `/health`, which generates.
                urllib.request.urlopen(f"{self.url}/model_info", timeout=1).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise Failed(f"the server did not start:\n{self.tail()}")

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(line[:400] for line in self.log.read_text(errors="replace").splitlines()[-lines:])

    def processes(self) -> list[int]:
        """The ids of its processes."""
        group = os.getpgid(self._process.pid)
        ids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in ids if _group(pid) == group]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, with all of its processes."""
        if self._process.poll() is None:
            self._process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "Server":
        try:
            self.wait()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, method: str, path: str, body: object = None, timeout: float = 60) -> str:
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {_ADMIN}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise Failed(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def generate(self, tokens: Sequence[int], new: int = 4, timeout: float = 60, name: str | None = None) -> Reply:
        """Continues a prompt greedily. With a name it can be aborted."""
        body = {
            "rid": name,
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": new, "temperature": 0, "ignore_eos": True},
        }
        answer = json.loads(self.call("POST", "/generate", body, timeout))
        details = answer["meta_info"].get("cached_tokens_details") or {}
        return Reply(
            tokens=tuple(answer["output_ids"]),
            device=details.get("device", 0),
            host=details.get("host", 0),
            storage=details.get("storage", 0),
        )

    def abort(self, name: str) -> None:
        """Ends a request early, if it is there."""
        self.call("POST", "/abort_request", {"rid": name})

    def flush(self) -> None:
        """Empties the device's pool and SGLang's host pool."""
        self.call("POST", "/flush_cache?timeout=30")

    def evict(self, seed: int) -> None:
        """Pushes everything older out of the device's pool."""
        for part in range(DEVICE_TOKENS // 1024 + 1):
            self.generate(prompt((seed << 16) + part, 1000), new=1)

    def until(self, name: str, value: float, seconds: float = 30) -> None:
        """Waits until a metric has reached a value."""
        end = time.monotonic() + seconds
        while (now := self.metric(name)) < value:
            if time.monotonic() > end:
                raise Failed(f"{name} is {now} and not {value} after {seconds} s:\n{self.tail()}")
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if there is none."""
        lines = self.call("GET", "/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def attach(self, config: Mapping[str, object], backend: str = "dynamic", policy: str = "wait_complete") -> None:
        body = {
            "hicache_storage_backend": backend,
            "hicache_storage_backend_extra_config_json": json.dumps(config),
            "hicache_storage_prefetch_policy": policy,
        }
        self.call("PUT", "/hicache/storage-backend", body)

    def detach(self, seconds: float = 60) -> None:
        """Detaches the storage backend, once nothing is under way: what was aborted may still be."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.call("DELETE", "/hicache/storage-backend")
            except Failed as error:
                if "not idle" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.05)
            else:
                return


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
