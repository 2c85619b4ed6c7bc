"""Stands in for the kernels of SGLang on a CPU, which no registry has: names exist, calls fail.

SGLang imports many names from here, on a CPU it calls none of them with the flags that the tests use. What is plain
Python in the real package comes from the real package.
"""

import sys
import sysconfig
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

__version__ = "0.4.10"
_PLAIN = ("scalar_type",)
_REAL = Path(sysconfig.get_path("purelib"), "sgl_kernel")


def _missing(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_args, **_kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} is not there without a GPU")

    return kernel


__getattr__ = _missing


class _Submodules(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        package, _, rest = name.partition(".")
        if package != __name__ or not rest:
            return None
        if rest in _PLAIN:
            return PathFinder.find_spec(name, [str(_REAL)])
        return ModuleSpec(name, self, is_package=True)

    def exec_module(self, module):
        module.__getattr__ = _missing


sys.meta_path.insert(0, _Submodules())
