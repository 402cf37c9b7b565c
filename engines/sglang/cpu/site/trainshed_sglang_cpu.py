"""Lets SGLang be imported beside a torch for CPUs. Loaded at the start of the interpreter by the .pth file; imports nothing heavy itself.

SGLang imports two things that cannot work here, and calls neither on a CPU:
- `triton` (a compiler for GPUs, a gigabyte). Where it is not installed, an empty one stands in: names exist, decorators hand back
  what they decorate, nothing is ever compiled.
- `torchvision` from PyPI, whose compiled half wants CUDA. It then misses two operators that it gives shapes to: they are declared.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

ERRORS = ("OutOfResources", "PTXASError", "CompilationError")


class Constexpr:
    """`tl.constexpr`: an annotation, and a wrapper around constants of kernels."""

    def __init__(self, value: object = None) -> None:
        self.value = value


class Config:
    """`triton.Config`: one choice of an autotuner."""

    def __init__(self, kwargs: Any = None, num_warps: int = 4, num_stages: int = 2, **_: object) -> None:
        self.kwargs, self.num_warps, self.num_stages = kwargs or {}, num_warps, num_stages


KNOWN: dict[str, Any] = {
    "triton.__version__": "3.0.0",
    "triton.cdiv": lambda a, b: -(a // -b),
    "triton.next_power_of_2": lambda n: 1 << max(n - 1, 0).bit_length(),
    "triton.Config": Config,
    "triton.language.constexpr": Constexpr,
    "triton.compiler.compiler.triton_key": lambda: "none",
    "triton.runtime.cache.triton_key": lambda: "none",
}


class Absent(ModuleType):
    """A module, and any name inside one: an attribute is made when somebody asks for it."""

    def __getattr__(self, name: str) -> Any:
        path = f"{self.__name__}.{name}"
        if path in KNOWN:
            made = KNOWN[path]
        elif name.startswith("__"):
            raise AttributeError(path)
        elif name[0].isupper():  # a class: to inherit from, to ask isinstance of, to catch
            made = type(name, (Exception if name in ERRORS else object,), {"__class_getitem__": classmethod(lambda cls, _: cls)})
        else:
            made = importlib.import_module(path)
        setattr(self, name, made)
        return made

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As a decorator, with or without arguments of its own."""
        if len(arguments) == 1 and callable(arguments[0]) and not options:
            return arguments[0]
        return lambda decorated: decorated

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Any:
        return iter(())

    def __contains__(self, _: object) -> bool:
        return False


class Empty(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class Finder(MetaPathFinder):
    """Asked first for every import; answers for triton, listens for torchvision."""

    def __init__(self) -> None:
        self._declared: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torchvision" and self._declared is None:
            torch = importlib.import_module("torch")
            self._declared = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self._declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        if name != "triton" and not isinstance(sys.modules.get("triton"), Absent):
            return None
        if name.partition(".")[0] != "triton" or PathFinder.find_spec(name, path) is not None:
            return None
        return ModuleSpec(name, Empty(), is_package=True)


sys.meta_path.insert(0, Finder())
