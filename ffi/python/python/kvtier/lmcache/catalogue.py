"""Which objects are stored, how large they are, and how many bytes each salt has."""

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvtier.lmcache._compat import ObjectKey
from kvtier.lmcache.naming import Shape


@dataclass(frozen=True, slots=True)
class Entry:
    """An object that is stored."""

    name: bytes
    """What it is called in its store."""
    shape: Shape
    charged: int
    """Bytes that it takes: those of a block."""
    number: int
    """Rises with every object that is added: the order of pages of a listing."""


class Catalogue:
    """The objects. Not for several threads at once."""

    def __init__(self) -> None:
        # From the one whose presence in the store was checked longest ago.
        self._entries: OrderedDict[ObjectKey, Entry] = OrderedDict()
        self._by_salt: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[ObjectKey, Entry]]:
        return iter(list(self._entries.items()))

    def get(self, key: ObjectKey) -> Entry | None:
        """What is known of an object, if it is stored."""
        return self._entries.get(key)

    def add(self, key: ObjectKey, name: bytes, shape: Shape, charged: int) -> Entry | None:
        """Notes an object, and returns what was there under the same key before."""
        before = self._entries.get(key)
        if before is not None:
            self._by_salt[key.cache_salt] -= before.charged
        number = next(self._numbers) if before is None else before.number
        self._entries[key] = Entry(name, shape, charged, number)
        self._by_salt[key.cache_salt] += charged
        return before

    def remove(self, key: ObjectKey) -> Entry | None:
        """Forgets an object."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._by_salt[key.cache_salt] -= entry.charged
            if not self._by_salt[key.cache_salt]:
                del self._by_salt[key.cache_salt]
        return entry

    def oldest_checked(self, most: int) -> list[tuple[ObjectKey, Entry]]:
        """Some objects, in turn: what the store has dropped by itself is found by looking."""
        taken = list(itertools.islice(self._entries.items(), most))
        for key, _ in taken:
            self._entries.move_to_end(key)
        return taken

    def usage(self) -> tuple[int, dict[str, int]]:
        """Bytes in all, and of each salt that has any."""
        by_salt = dict(self._by_salt)
        return sum(by_salt.values()), by_salt

    def page(self, model: str | None, after: int, most: int) -> list[tuple[ObjectKey, Entry]]:
        """Up to `most` objects of a model with numbers above `after`, in their order."""
        some: Iterable[tuple[ObjectKey, Entry]] = (
            (key, entry)
            for key, entry in self._entries.items()
            if entry.number > after and model in (None, key.model_name)
        )
        return heapq.nsmallest(most, some, key=lambda one: one[1].number)
