"""What processes have of what must not leak."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """Of one process, or of several together."""

    rss: int
    """Bytes."""
    threads: int
    """Without those that the kernel adds for io_uring as it needs them."""
    descriptors: int

    @classmethod
    def of(cls, *pids: int) -> "Footprint":
        """Of this process if none is named. One that ends meanwhile has nothing."""
        rss = threads = descriptors = 0
        for pid in pids or (os.getpid(),):
            process = Path(f"/proc/{pid}")
            try:
                rss += int((process / "status").read_text().split("VmRSS:")[1].split()[0]) << 10
                threads += sum(not _name(task).startswith("iou-") for task in (process / "task").iterdir())
                descriptors += len(list((process / "fd").iterdir()))
            except (FileNotFoundError, ProcessLookupError, IndexError):
                continue
        return cls(rss, threads, descriptors)


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "iou- or over"
