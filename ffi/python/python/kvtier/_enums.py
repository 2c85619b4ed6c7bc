"""The numbers of the C ABI by name."""

from enum import IntEnum


class KeyStatus(IntEnum):
    """What became of one key."""

    PENDING = 0
    """The operation is under way."""
    DONE = 1
    """Loaded, stored or pinned."""
    PRESENT = 2
    """A put, and the block was there already: nothing was copied, as a key names its bytes."""
    MISSING = 3
    """Not in the store. For a put of a chain: a block before it is missing."""
    FAILED = 4
    """Its bytes could not be read, or were not those that were stored."""
    NO_ROOM = 5
    """Everything is pinned or on its way."""
    TIMED_OUT = 6
    """Its time was over."""
    CANCELLED = 7
    """Cancelled before its turn."""


class Presence(IntEnum):
    """Where a block is."""

    ABSENT = 0
    HOST = 1
    NVME = 2


class Removal(IntEnum):
    """What became of a block that was to be removed."""

    ABSENT = 0
    """It was not there."""
    REMOVED = 1
    """It can no longer be found."""
    IN_USE = 2
    """Somebody reads, writes or pins it: it stays."""
