"""How an object of LMCache is called in a store of kvtier.

A name is a digest of everything that an `ObjectKey` and the object itself say, followed by the hash of the chunk. The
store hashes names once more, with the secret of its namespace.
"""

import functools
import hashlib
from dataclasses import dataclass

from kvtier.lmcache._compat import ObjectKey


@dataclass(frozen=True, slots=True)
class Shape:
    """What an object is, besides its key: objects that differ in it never stand for each other."""

    size: int
    """Bytes."""
    layout: str
    """Shapes, dtypes and format."""


def name_of(key: ObjectKey, shape: Shape) -> bytes:
    """The name. Differs if anything does: model, rank, group, salt, chunk, size or layout."""
    chunk: bytes = key.chunk_hash
    return _prefix(key.model_name, key.kv_rank, key.object_group_id, key.cache_salt, shape) + chunk


# The many chunks of one rank and salt share it.
@functools.lru_cache(maxsize=4096)
def _prefix(model: str, rank: int, group: int, salt: str, shape: Shape) -> bytes:
    digest = hashlib.blake2b(digest_size=32, person=b"kvtier-lmcache")
    for part in (model, str(rank), str(group), salt, str(shape.size), shape.layout):
        field = part.encode()
        # Lengths first: no two lists of fields have the same bytes.
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.digest()
