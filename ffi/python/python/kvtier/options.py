"""What a runtime's configuration file says about the store: the same names in every runtime.

>>> StoreOptions.parse({"host": "8GiB", "path": "/mnt/nvme/kv", "nvme": "1TiB"}).host
8589934592
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from kvtier._kvtier import Store
from kvtier.errors import Invalid

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.ASCII | re.IGNORECASE)


def parse_bytes(value: object) -> int:
    """A number of bytes, or a text such as `"8GiB"` (powers of 1024) or `"8GB"` (powers of 1000).

    >>> parse_bytes("1.5MiB"), parse_bytes("2 GB"), parse_bytes(4096)
    (1572864, 2000000000, 4096)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Invalid(f"{value!r} is no size: write a number of bytes, or a text such as '8GiB'")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{value!r} is neither true nor false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid(f"{value!r} is no text")
    return value


def _path(value: object) -> Path:
    path = Path(_text(value)).expanduser()
    if not path.is_absolute():
        raise Invalid(f"{value!r} is relative: a runtime's processes do not agree on the working directory")
    return path


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise Invalid(f"{value!r} is no list of texts")
    return tuple(_text(item) for item in value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 86400:
        raise Invalid(f"{value!r} is no number of seconds between 0 and 86400")
    return float(value)


_PARSERS = {
    "host": parse_bytes,
    "path": _path,
    "nvme": parse_bytes,
    "nvme_per_day": parse_bytes,
    "remotes": _texts,
    "tenant": _text,
    "revision": _text,
    "secret_file": _path,
    "gpu": _text,
    "weigh_nvme": _flag,
    "keep_at_exit": _flag,
    "timeout": _seconds,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where blocks are kept, whose they are, and how long a runtime waits for them.

    Sizes are those of one rank: every process of a runtime that holds KV cache opens a store of its own.
    """

    host: int
    """Pinned host memory, in bytes."""
    path: Path | None = None
    """Directory of the NVMe tier; every rank has its own in it. Without one there is no NVMe tier."""
    nvme: int | None = None
    """Bytes of disk that it may fill."""
    nvme_per_day: int | None = None
    """Bytes that may be written to it in a day."""
    remotes: tuple[str, ...] = ()
    """Remote stores, such as `redis://host` or `file:///shared`. Whoever shares one shares `secret_file`."""
    tenant: str = ""
    """Who owns the blocks."""
    revision: str = ""
    """The weights: another one after an update keeps stale KV from being served."""
    secret_file: Path | None = None
    """32 bytes that keys are derived from. Without it, random ones are kept beside the NVMe tier."""
    gpu: str = ""
    """The GPU that recomputes, such as `H200`: what is believed of it until it was observed."""
    weigh_nvme: bool = False
    """Whether NVMe is loaded from only when that beats recomputing. Remote stores always are."""
    keep_at_exit: bool = False
    """Whether what only host memory holds is written to NVMe when the runtime ends."""
    timeout: float = 30.0
    """Seconds after which a load is given up and recomputed."""

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> "StoreOptions":
        """Reads a runtime's configuration.

        Raises `Invalid`, which names what is wrong, for unknown names, missing ones and senseless values.
        """
        for name in given:
            if name not in _PARSERS:
                near = difflib.get_close_matches(name, _PARSERS, n=1)
                meant = f"; do you mean {near[0]!r}?" if near else f": there are {', '.join(_PARSERS)}"
                raise Invalid(f"kvtier has no option {name!r}{meant}")
        for field in fields(cls):
            if field.default is MISSING and field.name not in given:
                raise Invalid(f'kvtier needs the option {field.name!r}, such as "8GiB"')
        values = {}
        for name, value in given.items():
            try:
                values[name] = _PARSERS[name](value)
            except Invalid as error:
                raise Invalid(f"kvtier's option {name!r}: {error}") from None
        options = cls(**values)  # type: ignore[arg-type]
        if (options.path is None) != (options.nvme is None):
            raise Invalid("kvtier's options 'path' and 'nvme' (bytes of disk) come together")
        if options.path is None and (options.keep_at_exit or options.nvme_per_day is not None or options.weigh_nvme):
            raise Invalid("kvtier's options 'keep_at_exit', 'nvme_per_day' and 'weigh_nvme' need 'path'")
        return options

    def open(
        self,
        *,
        part: str,
        share: float = 1.0,
        block_bytes: int,
        model: str,
        layout: str,
        tokens_per_block: int | None = None,
    ) -> Store:
        """Opens the store of one part of the runtime's KV cache: of one rank, and of one pool of it.

        `part` names it and its directory below `path`; `share` is its part of the sizes. `layout` says all that decides
        what the bytes mean and that `model` and `block_bytes` do not: dtype, memory order, ranks, tokens per block.
        `tokens_per_block` turns on load-or-recompute.
        """
        path = None
        if self.path is not None:
            path = self.path / part
            path.mkdir(parents=True, exist_ok=True)
        secret = None
        if self.secret_file is not None:
            secret = self.secret_file.read_bytes()

        def scaled(size: int | None) -> int | None:
            return None if size is None else int(size * share)

        return Store(
            block_bytes,
            int(self.host * share),
            path=path,
            nvme_bytes=scaled(self.nvme),
            nvme_bytes_per_day=scaled(self.nvme_per_day),
            tenant=self.tenant,
            model=model,
            revision=self.revision,
            layout=layout,
            secret=secret,
            durability="at_close" if self.keep_at_exit else "write_behind",
            tokens_per_block=tokens_per_block,
            gpu=self.gpu,
            weigh_nvme=self.weigh_nvme,
            remotes=self.remotes,
        )


def describe(**parts: object) -> str:
    """A layout's text: equal for equal parts, whatever their order.

    >>> describe(tp=2, dtype="bfloat16")
    'dtype=bfloat16;tp=2'
    """
    return ";".join(f"{name}={value}" for name, value in sorted(parts.items()))
