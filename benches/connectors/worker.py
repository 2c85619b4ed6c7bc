"""One contender in a process of its own: `worker.py MODULE CLASS DIRECTORY DATA`.

Reads one JSON object a line, does one round for each, and answers with one line.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from contenders.base import Contender, Page, address
from measure import Cost, Pauses

IDLE = 0.2
"""Seconds of doing nothing that pauses are compared with."""

libc = ctypes.CDLL(None)
for function in (libc.memcmp, libc.memset, libc.memcpy):
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def fill(pages: list[Page], data: bytes) -> None:
    """Copies the data in, page after page."""
    start = 0
    for run in (run for page in pages for run in page):
        run[:] = data[start : start + len(run)]
        start += len(run)


def blank(pages: list[Page]) -> None:
    """So that a read that does nothing is noticed."""
    for run in (run for page in pages for run in page):
        libc.memset(address(run), 0, len(run))


def check(contender: Contender) -> None:
    """A read brought what was written."""
    for wrote, got in zip(contender.source, contender.target, strict=True):
        for one, other in zip(wrote, got, strict=True):
            if libc.memcmp(address(one), address(other), len(one)) != 0:
                raise RuntimeError("what was read is not what was written")


def fresh(contender: Contender) -> None:
    """Opens it on nothing."""
    shutil.rmtree(contender.directory, ignore_errors=True)
    contender.directory.mkdir(parents=True)
    contender.open()


def keys(number: int, of: str) -> list[bytes]:
    """As many keys, the same in every process."""
    return [hashlib.sha256(f"{of}/{i}".encode()).digest() for i in range(number)]


def measured(contender: Contender, name: str) -> dict[str, object]:
    """Writes, asks, reads warm and cold."""
    mine, others = keys(contender.blocks, name), keys(contender.blocks, name + "/no")
    result: dict[str, object] = {}
    fresh(contender)
    try:
        write = Cost.of(lambda: contender.write(mine))
        sync = Cost.of(contender.sync)
        result["write"], result["durable"] = (
            asdict(write),
            asdict(Cost(write.seconds + sync.seconds, write.processor + sync.processor)),
        )

        def ask(these: list[bytes], expected: int) -> float:
            begin = time.perf_counter()
            found = contender.exists(these)
            took = time.perf_counter() - begin
            if found != expected:
                raise RuntimeError(f"{found} of {len(these)} keys are said to be there, {expected} are")
            return took / len(these)

        result["exists"] = {"hit_s": ask(mine, len(mine)), "miss_s": None if contender.prefix else ask(others, 0)}
        blank(contender.target)
        result["warm"] = asdict(Cost.of(lambda: contender.read(mine)))
        check(contender)
        blank(contender.target)
        contender.cool()
        result["cold"] = asdict(Cost.of(lambda: contender.read(mine)))
        check(contender)
    finally:
        contender.close()
    return result


def disturbed(contender: Contender, name: str) -> dict[str, object]:
    """The same beside a busy thread."""
    mine = keys(contender.blocks, name + "/busy")

    def write() -> None:
        contender.write(mine)
        contender.sync()

    fresh(contender)
    try:
        result = {"idle": asdict(Pauses.during(lambda: time.sleep(IDLE))), "write": asdict(Pauses.during(write))}
        contender.cool()
        result["cold"] = asdict(Pauses.during(lambda: contender.read(mine)))
    finally:
        contender.close()
    return result


def main() -> None:
    """Until there are no more lines."""
    module, name, directory, data = sys.argv[1:]
    # What runtimes print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kind: type[Contender] = getattr(importlib.import_module(module), name)
    about = {"promise": kind.promise, "checks": kind.checks, "cold": kind.cold}
    print(json.dumps(about), file=answers)
    contender: Contender | None = None
    for line in sys.stdin:
        order = json.loads(line)
        size, blocks = order["size"], order["blocks"]
        if contender is None or contender.size != size:
            contender = None
            contender = kind(Path(directory), size, blocks)
            fill(contender.source, Path(data).read_bytes())
        answer = measured(contender, order["name"])
        if order["pauses"]:
            answer["pauses"] = disturbed(contender, order["name"])
        shutil.rmtree(directory, ignore_errors=True)
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
