"""What the wheel costs: calls, bytes, and the time of other threads of Python. `python -m kvtier.bench --dir DIR`.

Contenders take turns in one run. Figures are medians over the repetitions. The rival is what one writes in an
afternoon: a file for each block, `O_DIRECT`, four threads; no checksums, no `fsync`, no limit to what it stores.
Prints one JSON object.
"""

import argparse
import ctypes
import json
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kvtier

KIB, MIB = 1 << 10, 1 << 20
SIZES = (512 * KIB, 2 * MIB, 8 * MIB)


def address(buffer: mmap.mmap) -> int:
    """First byte of a mapping, which begins with a page as `O_DIRECT` needs it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Files:
    """The rival."""

    def __init__(self, directory: Path, size: int) -> None:
        self._directory, self._size = directory, size
        self._threads = ThreadPoolExecutor(4)

    def _one(self, key: bytes, page: memoryview, flags: int) -> None:
        file = os.open(self._directory / key.hex(), flags | os.O_DIRECT, 0o600)
        try:
            moved = os.pwritev(file, [page], 0) if flags & os.O_WRONLY else os.preadv(file, [page], 0)
            if moved != self._size:
                raise OSError(f"{moved} of {self._size} bytes")
        finally:
            os.close(file)

    def _all(self, keys: list[bytes], buffer: mmap.mmap, flags: int) -> None:
        pages = [memoryview(buffer)[i * self._size : (i + 1) * self._size] for i in range(len(keys))]
        list(self._threads.map(self._one, keys, pages, [flags] * len(keys)))

    def put(self, keys: list[bytes], buffer: mmap.mmap) -> None:
        """Writes a file for each key."""
        self._all(keys, buffer, os.O_WRONLY | os.O_CREAT)

    def get(self, keys: list[bytes], buffer: mmap.mmap) -> None:
        """Reads them back."""
        self._all(keys, buffer, os.O_RDONLY)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()


def timed(work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Seconds, and seconds of all processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def all_done(ticket: kvtier.Ticket) -> None:
    """Waits; a benchmark of misses would be a fast one."""
    summary = ticket.wait()
    if summary is None or summary.done != summary.keys:
        raise RuntimeError(f"{summary}: {sorted(set(ticket.statuses()))}")


def calls(repeat: int) -> dict[str, Any]:
    """Microseconds of one `exists`, by the form of its keys."""
    result: dict[str, Any] = {}
    with kvtier.Store(4096, 64 * MIB) as store:
        for n in (1, 64, 1024):
            keys = [os.urandom(16) for _ in range(n)]
            packed, bound = b"".join(keys), store.keys(keys)
            all_done(store.put(keys, bytes(4096 * n)))
            forms: dict[str, Any] = {"list": keys, "packed": packed, "Keys": bound}
            times = {}
            for name, form in forms.items():
                exists = store.exists
                samples = []
                for _ in range(repeat):
                    begin = time.perf_counter()
                    for _ in range(200):
                        exists(form)
                    samples.append((time.perf_counter() - begin) / 200 * 1e6)
                times[name] = round(statistics.median(samples), 2)
            result[f"exists_{n}_us"] = times
    return result


def copies(size: int, total: int, directory: Path, repeat: int) -> dict[str, Any]:
    """GB/s, and processor seconds per GB, of blocks of one size."""
    n = total // size
    total = n * size
    source, target = mmap.mmap(-1, total), mmap.mmap(-1, total)
    for i in range(n):
        source[i * size : (i + 1) * size] = os.urandom(size)
    target[:] = source[:]
    runs: dict[str, list[tuple[float, float]]] = {}

    def run(name: str, work: Callable[..., object], *arguments: object) -> None:
        runs.setdefault(name, []).append(timed(work, *arguments))

    def put(store: kvtier.Store, keys: list[bytes]) -> None:
        all_done(store.put(keys, source, timeout=600))

    def put_flush(store: kvtier.Store, keys: list[bytes]) -> None:
        put(store, keys)
        all_done(store.flush(timeout=600))

    def get(store: kvtier.Store, keys: list[bytes]) -> None:
        all_done(store.get(keys, target, timeout=600))

    def opened() -> kvtier.Store:
        room = 3 * total + (1 << 30)
        return kvtier.Store(size, 2 * total + 64 * size, path=directory / "kvtier", nvme_bytes=room)

    for _ in range(repeat):
        keys = [os.urandom(16) for _ in range(n)]
        run("memcpy", ctypes.memmove, address(target), address(source), total)
        with kvtier.Store(size, 2 * total + 64 * size) as store:
            run("memory_put", put, store, keys)
            run("memory_get", get, store, keys)
        for path in (directory / "kvtier", directory / "files"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        with opened() as store:
            run("nvme_put_flush", put_flush, store, keys)
        target[:] = bytes(total)
        with opened() as store:
            run("nvme_get", get, store, keys)
        if target[:] != source[:]:
            raise RuntimeError("what was loaded is not what was stored")
        files = Files(directory / "files", size)
        run("files_put", files.put, keys, source)
        run("files_get", files.get, keys, target)
        files.close()

    def figures(samples: list[tuple[float, float]]) -> dict[str, float]:
        wall, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        return {"gb_s": round(total / wall / 1e9, 2), "cpu_s_per_gb": round(cpu / total * 1e9, 3)}

    return {"block_bytes": size, "blocks": n} | {name: figures(samples) for name, samples in runs.items()}


def jitter(directory: Path, seconds: float) -> dict[str, Any]:
    """What a busy thread of Python sees while another loads: turns per millisecond, and its longest pauses."""
    size, n = 2 * MIB, 64
    source = mmap.mmap(-1, n * size)
    keys = [os.urandom(16) for _ in range(n)]
    path = directory / "jitter"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    files = Files(path, size)
    files.put(keys, source)
    with kvtier.Store(size, 4 * n * size) as store:
        all_done(store.put(keys, source))

        def watched(work: Callable[[], object]) -> dict[str, float]:
            stop = threading.Event()
            gaps: list[float] = []
            turns = 0

            def busy() -> None:
                nonlocal turns
                last = time.perf_counter()
                while not stop.is_set():
                    now = time.perf_counter()
                    turns += 1
                    if now - last > 100e-6:
                        gaps.append(now - last)
                    last = now

            thread = threading.Thread(target=busy)
            begin = time.perf_counter()
            thread.start()
            while time.perf_counter() - begin < seconds:
                work()
            took = time.perf_counter() - begin
            stop.set()
            thread.join()
            return {
                "turns_per_ms": round(turns / took / 1e3, 1),
                "pauses_over_100us_per_s": round(len(gaps) / took, 1),
                "longest_pause_ms": round(max(gaps, default=0.0) * 1e3, 2),
            }

        result = {
            "idle": watched(lambda: time.sleep(0.01)),
            "kvtier_get": watched(lambda: all_done(store.get(keys, source))),
            "files_get": watched(lambda: files.get(keys, source)),
        }
    files.close()
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m kvtier.bench", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where to write: on the disk to be measured (default: temporary)")
    parser.add_argument("--mib", type=int, default=256, help="data of each measurement (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="kvtier-bench-") as directory:
        work = Path(directory)
        result = {
            "kvtier": kvtier.__version__,
            "python": sys.version.split()[0],
            "processors": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "calls": calls(arguments.repeat),
            "copies": [copies(size, arguments.mib * MIB, work, arguments.repeat) for size in SIZES],
            "jitter": jitter(work, 2.0),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
