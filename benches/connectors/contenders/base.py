"""What every contender does: pages of a runtime's memory to a disk and back."""

from __future__ import annotations

import abc
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

Page: TypeAlias = list[memoryview]
"""One block where the runtime keeps it: one run of bytes, or several."""


def mapped(size: int, blocks: int) -> list[Page]:
    """Pages in memory of their own, each at a multiple of 4096 as `O_DIRECT` needs it."""
    # Private, as the allocators of all runtimes map it.
    memory = mmap.mmap(-1, size * blocks, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(memory)
    return [[view[i * size : (i + 1) * size]] for i in range(blocks)]


def address(run: memoryview) -> int:
    """Where a run begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(run))


def at(start: int, size: int) -> memoryview:
    """The bytes of a runtime's memory that begin there."""
    return memoryview((ctypes.c_char * size).from_address(start)).cast("B")


class Contender(abc.ABC):
    """One way to keep blocks of one size below `directory`, which is there and empty when it is opened first."""

    promise = ""
    """What a write promises when the contender says that it is done."""

    checks = "nothing"
    """What is checked of the bytes that come back."""

    cold = "page cache dropped"
    """What makes a read cold."""

    prefix = False
    """Whether its runtime asks how many of the first keys are there, so that the first miss is the only one."""

    def __init__(self, directory: Path, size: int, blocks: int) -> None:
        self.directory, self.size, self.blocks = directory, size, blocks
        self.source, self.target = self.pages()

    def pages(self) -> tuple[list[Page], list[Page]]:
        """The runtime's memory: what is written from, and what is read to."""
        return mapped(self.size, self.blocks), mapped(self.size, self.blocks)

    @abc.abstractmethod
    def open(self) -> None:
        """Begins to serve what is in the directory."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all of it."""

    @abc.abstractmethod
    def write(self, keys: list[bytes]) -> None:
        """Page `i` of the source under key `i`, until the contender says that it is done."""

    @abc.abstractmethod
    def read(self, keys: list[bytes]) -> None:
        """Key `i` to page `i` of the target. A miss is an error."""

    @abc.abstractmethod
    def exists(self, keys: list[bytes]) -> int:
        """How many of the keys it has, asked in the way in which its runtime asks."""

    def files(self) -> Iterable[Path]:
        """What it has written."""
        return (path for path in self.directory.rglob("*") if path.is_file())

    def sync(self) -> None:
        """Makes what was written survive a power loss: by default as a careful user would, file by file."""
        folders = {self.directory}
        for path in self.files():
            folders.add(path.parent)
            file = os.open(path, os.O_RDONLY)
            os.fdatasync(file)
            os.close(file)
        for folder in folders:
            file = os.open(folder, os.O_RDONLY)
            os.fsync(file)
            os.close(file)

    def reopen(self) -> None:
        """For those that keep bytes in memory of their own."""
        self.close()
        self.open()

    def cool(self) -> None:
        """Makes the next read a cold one. What was written is synced by now, so that all pages can be dropped."""
        for path in self.files():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
