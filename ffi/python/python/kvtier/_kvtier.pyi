# The documentation of what is here is in the extension itself: `help(kvtier.Store)`.

from collections.abc import Generator, Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Final, Literal, Protocol, SupportsIndex, TypeAlias, final, overload

from typing_extensions import Buffer, Self

__all__ = [
    "_KEY_STATUSES",
    "_PRESENCES",
    "_REMOVALS",
    "Keys",
    "Layout",
    "Pool",
    "Queue",
    "Runs",
    "Store",
    "Summary",
    "Ticket",
    "__version__",
    "build_info",
    "close_all",
    "log_level",
    "next_logs",
    "stop_logs",
]

__version__: Final[str]
_KEY_STATUSES: Final[list[tuple[str, int]]]
_PRESENCES: Final[list[tuple[str, int]]]
_REMOVALS: Final[list[tuple[str, int]]]

class _Tensor(Protocol):
    """torch.Tensor, which is never imported here."""

    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> Any: ...

class _DLPack(Protocol):
    def __dlpack__(self) -> Any: ...

_Memory: TypeAlias = Buffer | _Tensor | _DLPack | tuple[int, int]
_Buffers: TypeAlias = _Memory | Runs | Sequence[_Memory | Sequence[_Memory] | None]
_Keys: TypeAlias = Keys | Buffer | Iterable[bytes | str | Buffer]
_Strides: TypeAlias = tuple[int | None, int | None, int, int, int]
_Arrangement: TypeAlias = Literal["kv_outer", "block_outer", "separate_kv", "block_outermost"]

@final
class Keys:
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> bytes: ...
    @overload
    def __getitem__(self, key: slice, /) -> Keys: ...

@final
class Runs:
    def __new__(
        cls,
        pointers: Sequence[int] | Buffer,
        sizes: int | Sequence[int] | Buffer,
        *,
        keep: object | None = None,
    ) -> Self: ...
    def __len__(self) -> int: ...

@final
class Layout:
    def __new__(
        cls,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: Literal["bf16", "f16", "fp8_e4m3", "fp8_e5m2", "f32"],
        tokens_per_block: int,
        order: Literal["NHD", "HND"] = "NHD",
        fused: bool = False,
    ) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @property
    def block_bytes(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def tokens_per_block(self) -> int: ...

@final
class Summary:
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]
    @property
    def keys(self) -> int: ...
    @property
    def done(self) -> int: ...
    @property
    def prefix(self) -> int: ...

@final
class Queue:
    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def drain(self, most: int = 1024) -> list[tuple[int, int, int]]: ...

@final
class Ticket:
    def poll(self) -> Summary | None: ...
    @property
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> Summary | None: ...
    def statuses(self) -> bytes: ...
    def served(self) -> list[bool]: ...
    def bitmap(self) -> bytes: ...
    def why(self) -> str | None: ...
    def cancel(self) -> None: ...
    def announce(self, queue: Queue, tag: int) -> None: ...
    def release(self) -> None: ...
    def wait_layer(self, layer: int, timeout: float | None = None) -> None: ...
    def hold_layer(self, layer: int, stream: int, timeout: float | None = None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None: ...
    def __await__(self) -> Generator[Any, None, Summary]: ...

@final
class Pool:
    def offload(
        self,
        keys: _Keys,
        blocks: Sequence[int],
        *,
        chained: bool = False,
        timeout: float | None = None,
        queue: Queue | None = None,
        tag: int = 0,
    ) -> Ticket: ...
    def onboard(
        self,
        keys: _Keys,
        blocks: Sequence[int],
        *,
        chained: bool = False,
        timeout: float | None = None,
        queue: Queue | None = None,
        tag: int = 0,
    ) -> Ticket: ...
    @property
    def num_blocks(self) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None: ...

@final
class Store:
    def __new__(
        cls,
        block_bytes: int,
        host_bytes: int,
        *,
        path: str | PathLike[str] | None = None,
        nvme_bytes: int | None = None,
        nvme_bytes_per_day: int | None = None,
        tenant: str = "",
        model: str = "",
        revision: str = "",
        layout: str = "",
        secret: bytes | None = None,
        durability: Literal["write_behind", "at_close"] = "write_behind",
        tokens_per_block: int | None = None,
        gpu: str = "",
        weigh_nvme: bool = False,
        remotes: Sequence[str] = ...,
    ) -> Self: ...
    @property
    def block_bytes(self) -> int: ...
    def keys(self, keys: _Keys) -> Keys: ...
    def token_keys(
        self,
        tokens: Iterable[int] | Buffer,
        tokens_per_block: int,
        *,
        parent: bytes | None = None,
        lora: bytes | None = None,
        salt: bytes | None = None,
    ) -> Keys: ...
    def exists(self, keys: _Keys) -> bytes: ...
    def prefix(self, keys: _Keys) -> int: ...
    def remove(self, keys: _Keys) -> bytes: ...
    def clear(self) -> None: ...
    def get(
        self,
        keys: _Keys,
        buffers: _Buffers,
        *,
        chained: bool = False,
        timeout: float | None = None,
        queue: Queue | None = None,
        tag: int = 0,
    ) -> Ticket: ...
    def put(
        self,
        keys: _Keys,
        buffers: _Buffers,
        *,
        chained: bool = False,
        timeout: float | None = None,
        queue: Queue | None = None,
        tag: int = 0,
    ) -> Ticket: ...
    def pin(
        self,
        keys: _Keys,
        *,
        chained: bool = False,
        timeout: float | None = None,
        queue: Queue | None = None,
        tag: int = 0,
    ) -> Ticket: ...
    def flush(self, *, timeout: float | None = None, queue: Queue | None = None, tag: int = 0) -> Ticket: ...
    def register(
        self,
        layout: Layout,
        tensors: Sequence[_Memory],
        *,
        num_blocks: int,
        arrangement: _Arrangement | _Strides = "kv_outer",
        device: int | None = None,
        streams: Sequence[int] = (),
    ) -> Pool: ...
    def observed_prefill(self, start: int, end: int, seconds: float) -> None: ...
    def quote(self, keys: _Keys) -> dict[str, Any] | None: ...
    def balance(self) -> dict[str, float] | None: ...
    def stats(self) -> dict[str, int]: ...
    def close(self, timeout: float = 10.0) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None: ...

def build_info() -> dict[str, Any]: ...
def close_all() -> None: ...
def log_level(level: int) -> bool: ...
def next_logs(timeout: float) -> list[tuple[int, str, str]] | None: ...
def stop_logs() -> None: ...
