"""The list of what is stored, on disk: how a restart knows which objects there are and whose they are.

A text file, one record a line: the CRC-32 of the record in hexadecimal digits, a space, and the record as JSON. Every
line stands by itself. A crash can tear the last one, and a power loss the last few, as nothing is synced: what they
said is then forgotten, and those objects are misses. The bytes themselves are not here, and what the journal says of
them is checked against the store when it is read.
"""

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kvtier.errors import OpenFailed

# Records that are replaced before it is worth the time to write the file anew.
_FEWEST_STALE = 4096


class Journal:
    """Appends records, and replaces all of them when most are stale. Not for several threads at once."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. `OpenFailed` when another process has it open, or the directory cannot be used."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OpenFailed(f"{path.parent}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = self._append()
        except OSError as error:
            os.close(self._lock)
            used = isinstance(error, BlockingIOError)
            why = "another LMCache server or adapter uses this directory" if used else error.strerror
            raise OpenFailed(f"{path.parent}: {why}") from error
        self._records = 0

    def read(self) -> Iterator[list[Any]]:
        """All records that are whole, oldest first."""
        with self._path.open("rb") as file:
            for line in file:
                body = line[9:-1]
                if line[-1:] == b"\n" and line[:9] == b"%08x " % zlib.crc32(body):
                    self._records += 1
                    yield json.loads(body)

    def write(self, records: Iterable[list[Any]]) -> None:
        """Appends records. They survive the end of this process, however it ends; not a power loss."""
        lines = [_line(record) for record in records]
        if lines:
            _write_all(self._file, b"".join(lines))
            self._records += len(lines)

    def stale(self, live: int) -> bool:
        """Whether most of the file is about objects that are no more."""
        return self._records > 2 * live + _FEWEST_STALE

    def replace(self, records: Iterable[list[Any]]) -> None:
        """Writes the file anew. A crash leaves the old one or the new one."""
        new = self._path.with_suffix(".new")
        count = 0
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            for record in records:
                file.write(_line(record))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        os.close(self._file)
        self._file = self._append()
        self._records = count

    def close(self) -> None:
        """Ends it. Harmless the second time."""
        for name in ("_file", "_lock"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                setattr(self, name, -1)
                os.close(descriptor)

    def _append(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        end = os.lseek(file, 0, os.SEEK_END)
        if end and os.pread(file, 1, end - 1) != b"\n":
            # So that what a crash has torn does not take the next record with it.
            _write_all(file, b"\n")
        return file


def _line(record: list[Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        with contextlib.suppress(InterruptedError):
            left = left[os.write(file, left) :]
