"""kvtier inside SGLang. The classes that SGLang loads by name; SGLang is imported with the first of them."""

import importlib

_CLASSES = {"KvtierLinker": "kvtier.sglang.linker"}

__all__ = ["KvtierLinker"]


def __getattr__(name: str) -> object:
    module = _CLASSES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
