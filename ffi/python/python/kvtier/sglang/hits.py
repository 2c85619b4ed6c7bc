"""Which prefixes of a request several pools can restore together."""

from collections.abc import Mapping, Sequence

from kvtier.sglang._compat import PoolHitPolicy, PoolName, PoolTransfer, PoolTransferResult
from kvtier.sglang.namespace import pool_name


def restorable(
    found: int, transfers: Sequence[PoolTransfer], present: Mapping[str, Sequence[bool]], *, counted: bool
) -> PoolTransferResult:
    """Prefixes of the first `found` pages whose pages the other pools have, too, as far as their policies ask for them.

    `counted` is false if the KV cache itself has no pages, so that `found` says nothing: then there is a hit only if
    another pool has every page.
    """
    lengths = set(range(1, found + 1))
    if not counted and not any(transfer.hit_policy == PoolHitPolicy.ALL_PAGES for transfer in transfers):
        lengths = set()
    reached = {PoolName.KV: found} if found and counted else {}
    possible: Sequence[int]
    for transfer in transfers:
        there = present[pool_name(transfer.name)]
        if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
            possible = range(1, leading(there) + 1)
        elif transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
            possible = _complete_windows(there, max(1, len(transfer.keys or ())))
        else:
            # Never asked for by this version; a pool without an answer counts as one without pages.
            continue
        if possible:
            reached[transfer.name] = max(possible)
        lengths.intersection_update(possible)
    ordered = sorted(lengths)
    return PoolTransferResult(ordered[-1] if ordered else 0, reached, ordered)


def leading(flags: Sequence[bool]) -> int:
    """How many are true before the first that is not."""
    return next((at for at, flag in enumerate(flags) if not flag), len(flags))


def _complete_windows(there: Sequence[bool], width: int) -> list[int]:
    """Prefixes of which the last `width` pages are all there; shorter ones need all of theirs."""
    ends = []
    run = 0
    for length, flag in enumerate(there, 1):
        run = run + 1 if flag else 0
        if run >= min(width, length):
            ends.append(length)
    return ends
