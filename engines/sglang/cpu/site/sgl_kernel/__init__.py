"""Stands in for SGLang's compiled kernels for CPUs, which are not on PyPI. Only to be imported from.

SGLang takes names that end in `_cpu` from here when it is loaded (for speculative decoding and moves between pages, neither of which
we use). Since `torch.ops.sgl_kernel` stays empty, SGLang finds no fast path and computes with torch itself.
"""

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if not name.endswith("_cpu"):
        raise AttributeError(f"sgl_kernel.{name}: the compiled kernels are not here")

    def absent(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} needs SGLang's compiled kernels for CPUs")

    return absent
