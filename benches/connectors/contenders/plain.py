"""What one writes in an afternoon: a file for each block, `O_DIRECT`, four threads. No checksums, no limit to size."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from contenders.base import Contender, Page


class Plain(Contender):
    """Written to a temporary file and renamed, as all backends with files do it: a reader never sees half a block."""

    promise = "the device has it; its cache may not, nor the directory"
    cold = "nothing to drop: O_DIRECT"

    def open(self) -> None:
        self._threads = ThreadPoolExecutor(4)

    def close(self) -> None:
        self._threads.shutdown()

    def _path(self, key: bytes) -> str:
        return f"{self.directory}/{key.hex()}"

    def _write(self, key: bytes, page: Page) -> None:
        path = self._path(key)
        file = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        try:
            moved = os.pwritev(file, page, 0)
        finally:
            os.close(file)
        if moved != self.size:
            raise OSError(f"{moved} of {self.size} bytes were written")
        os.rename(path + ".tmp", path)

    def _read(self, key: bytes, page: Page) -> None:
        file = os.open(self._path(key), os.O_RDONLY | os.O_DIRECT)
        try:
            moved = os.preadv(file, page, 0)
        finally:
            os.close(file)
        if moved != self.size:
            raise OSError(f"{moved} of {self.size} bytes were read")

    def write(self, keys: list[bytes]) -> None:
        list(self._threads.map(self._write, keys, self.source))

    def read(self, keys: list[bytes]) -> None:
        list(self._threads.map(self._read, keys, self.target))

    def exists(self, keys: list[bytes]) -> int:
        return sum(os.path.exists(self._path(key)) for key in keys)
