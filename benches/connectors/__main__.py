"""kvtier and the runtimes' own backends, side by side on one disk: `python benches/connectors --help`.

```
  this process ── round after round, in random order ──► worker.py  plain
   fio, tables                                           worker.py  kvtier
                                                         worker.py  SGLang's file, in SGLang's environment ...
```

Nothing runs at the same time as a measurement but the contender that is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fio
import table

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
SIZES = (512 << 10, 2 * MIB, 8 * MIB)


@dataclass(frozen=True)
class Entry:
    """A contender: where it is, and in which runtime's environment it lives."""

    module: str
    kind: str
    runtime: str | None = None


ENTRIES = {
    "plain O_DIRECT": Entry("contenders.plain", "Plain"),
    "SGLang file": Entry("contenders.sglang", "File", "sglang"),
    "LMCache fs_native": Entry("contenders.lmcache", "FsNative", "lmcache"),
    "LMCache raw_block": Entry("contenders.lmcache", "RawBlock", "lmcache"),
    "vLLM fs": Entry("contenders.vllm", "Fs", "vllm"),
    "kvtier": Entry("contenders.wheel", "Wheel"),
    "kvtier in SGLang": Entry("contenders.kvtier_sglang", "Kvtier", "sglang"),
    "kvtier in LMCache": Entry("contenders.kvtier_lmcache", "Kvtier", "lmcache"),
    "kvtier in vLLM": Entry("contenders.kvtier_vllm", "Kvtier", "vllm"),
}


class Worker:
    """The process of one contender."""

    def __init__(self, entry: Entry, python: str, directory: Path, data: Path, path: list[Path], log: Path) -> None:
        self.log = log
        command = [python, str(HERE / "worker.py"), entry.module, entry.kind, str(directory), str(data)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            # Tools that a runtime builds its extensions with are beside its interpreter.
            "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
            "VLLM_TARGET_DEVICE": "cpu",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def answer(self) -> dict[str, Any]:
        """The next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("\n".join(self.log.read_text(errors="replace").splitlines()[-12:]))
        return dict(json.loads(line))

    def round(self, **order: object) -> dict[str, Any]:
        """One round."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        """Lets it end, or sees to it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def commit() -> str:
    """What was built."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"commit {asked.stdout.strip()}" if asked.returncode == 0 else "of an unknown commit"


def processor() -> str:
    """Its name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


@contextlib.contextmanager
def workers(
    arguments: argparse.Namespace, place: Path
) -> Iterator[tuple[dict[str, Worker], dict[str, Any], dict[str, str]]]:
    """Starts all contenders that can be started; says what they are, and why others are not there."""
    started: dict[str, Worker] = {}
    about: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    try:
        for name, entry in ENTRIES.items():
            if arguments.only and name not in arguments.only:
                continue
            home = getattr(arguments, entry.runtime) if entry.runtime else None
            if entry.runtime and home is None:
                left_out[name] = f"no environment of {entry.runtime} was given"
                continue
            # Not resolved: it is the link that makes the environment.
            python = str((home / "bin" / "python").absolute()) if home else sys.executable
            slug = "".join(c if c.isalnum() else "-" for c in name)
            path = [HERE, *(folder.absolute() for folder in arguments.path)]
            started[name] = Worker(entry, python, place / slug, place / "data", path, place / f"{slug}.log")
            # One after the other: imports take all processors.
            try:
                about[name] = started[name].answer()
            except RuntimeError as why:
                started.pop(name).end()
                left_out[name] = str(why)
                print(f"{name}: {why}", file=sys.stderr)
        yield started, about, left_out
    finally:
        for worker in started.values():
            worker.end()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benches/connectors", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where to write: on the disk to be measured (default: temporary)")
    parser.add_argument(
        "--path", type=Path, nargs="*", default=[], help="folders to import from, above all the one with kvtier in it"
    )
    for runtime in sorted({entry.runtime for entry in ENTRIES.values() if entry.runtime}):
        parser.add_argument(f"--{runtime}", type=Path, help=f"the virtual environment of {runtime}")
    parser.add_argument("--mib", type=int, default=256, help="data of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="at most, for each block size (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=7.5, help="begins no round after that (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="bytes of a block (default: %(default)s)")
    parser.add_argument("--only", nargs="*", help="names of contenders (default: all)")
    parser.add_argument("--out", type=Path, help="a folder for connectors-DATE.json and .md (default: prints the page)")
    arguments = parser.parse_args()

    began, load = time.monotonic(), os.getloadavg()[0]
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="kvtier-connectors-") as directory:
        # Runtimes take no relative paths.
        place = Path(directory).resolve()
        (place / "data").write_bytes(os.urandom(arguments.mib * MIB))
        with workers(arguments, place) as (contenders, about, left_out):
            print(f"{len(contenders)} contenders ready after {time.monotonic() - began:.0f} s", file=sys.stderr)
            for at, size in enumerate(arguments.sizes):
                blocks = arguments.mib * MIB // size
                # The same time for each size.
                left = began + 60 * arguments.minutes - time.monotonic()
                end = time.monotonic() + left / (len(arguments.sizes) - at)
                for number in range(arguments.rounds):
                    round_began = time.monotonic()
                    names = [*contenders, *([table.LIMIT] if shutil.which("fio") else [])]
                    random.shuffle(names)
                    for name in names:
                        os.sync()
                        label = {"contender": name, "size": size, "blocks": blocks, "round": number}
                        try:
                            if name == table.LIMIT:
                                answer = fio.run(place / "fio", size, blocks)
                            else:
                                order = {"size": size, "blocks": blocks, "name": f"{size}/{number}", "pauses": True}
                                answer = contenders[name].round(**order)
                        except RuntimeError as why:
                            if name == table.LIMIT:
                                raise
                            contenders.pop(name).end()
                            left_out[name] = f"it failed: {why}"
                            print(f"{name}: {why}", file=sys.stderr)
                            continue
                        rounds.append(label | answer)
                    if 2 * time.monotonic() - round_began > end:
                        break
                print(f"{size} bytes: {number + 1} rounds, {time.monotonic() - began:.0f} s", file=sys.stderr)
    result: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "mib": arguments.mib,
        "sizes": list(arguments.sizes),
        "seconds": round(time.monotonic() - began),
        "contenders": about,
        "left_out": left_out,
        "cells": table.summary(rounds),
    }
    page = table.markdown(result)
    if arguments.out:
        name = f"connectors-{result['date']}"
        (arguments.out / f"{name}.json").write_text(json.dumps(result | {"measured": rounds}, indent=1) + "\n")
        (arguments.out / f"{name}.md").write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
