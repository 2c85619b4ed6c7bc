"""Bit flips in what a store has on disk."""

from pathlib import Path


def flip(path: Path, every: int) -> int:
    """Flips one bit in each so many bytes of the logs below a directory; how many."""
    count = 0
    for file in path.rglob("*"):
        if file.is_file() and file.stat().st_size > 1 << 20:
            with file.open("r+b") as log:
                for at in range(every // 2, file.stat().st_size, every):
                    log.seek(at)
                    byte = log.read(1)
                    log.seek(at)
                    log.write(bytes([byte[0] ^ 0x10]))
                    count += 1
    return count
