"""This module asks an interpreter, in a process of its own, which version of a package it has, and what of CUDA. No code of the operator's is run."""

import os
import subprocess
from collections.abc import Mapping
from typing import Final

import msgspec

CHECK_S: Final = 10.0
"""Seconds that a check waits for the answer; a run has more patience with a cold disk."""


LOOK: Final = """
import glob, json, os, shutil, sysconfig
site = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
found = lambda pattern: sorted(path for folder in site for path in glob.glob(folder + "/" + pattern))
print(json.dumps({
    "libraries": [os.path.dirname(path) for path in found("nvidia/cu1?/lib/libcudart.so.*") + found("nvidia/cuda_runtime/lib/libcudart.so.*")],
    "runtimes": [path.rpartition(".so.")[2] for path in found("nvidia/*/lib/libcudart.so.*")],
    "preloads": found("torch_memory_saver_hook_mode_preload*.so"),
    "nvcc": (found("nvidia/*/bin/nvcc") + [None])[0],
}))
"""
"""Where wheels for CUDA 12 and 13 put their parts (nvidia-cuda-runtime-cu12 12.x: nvidia/cuda_runtime, nvidia-cuda-runtime 13.x: nvidia/cu13)."""


class CudaParts(msgspec.Struct, frozen=True):
    """What an environment has of CUDA. `libraries` are folders with its runtime, `runtimes` the runtime's versions, `preloads` the builds of SGLang's
    memory saver that are preloaded into its processes, one for each major version of CUDA."""

    libraries: list[str] = []
    runtimes: list[str] = []
    preloads: list[str] = []
    nvcc: str | None = None

    @property
    def major(self) -> int | None:
        """The major version of CUDA that its wheels are built for; None where they bring none."""
        majors = [int(version.partition(".")[0]) for version in self.runtimes if version.partition(".")[0].isdigit()]
        return max(majors, default=None)

    @property
    def preload(self) -> str | None:
        """The build of the memory saver that will be preloaded."""
        fitting = [path for path in self.preloads if self.major is not None and f"_cu{self.major}" in os.path.basename(path)]
        return next(iter(fitting or self.preloads), None)


class NotInstalled(Exception):
    """The interpreter does not have the package, or is none."""


class Unanswered(NotInstalled):
    """The interpreter has not answered in time."""


def installed_version(python: str, package: str, called: str, environ: Mapping[str, str], limit: float) -> str:
    """Returns the version of `package`, which people know as `called`. Raises NotInstalled; Unanswered after `limit` seconds."""
    ask = [python, "-I", "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
    try:
        done = subprocess.run(ask, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unanswered(f"does not say which {called} it has within {limit:.0f} s") from error
    except OSError as error:
        raise NotInstalled(f"does not say which {called} it has: {error}") from error
    answer = done.stdout[:200].decode("ascii", "replace").strip()
    if done.returncode != 0 or not answer:
        last = done.stderr[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        why = "" if "PackageNotFoundError" in last else f" ({last or f'it ends with {done.returncode}'})"
        raise NotInstalled(f"has no {called}{why}")
    return answer


def cuda_parts(python: str, environ: Mapping[str, str], limit: float) -> CudaParts | None:
    """Returns what the interpreter's environment has of CUDA; None when it does not say it within `limit` seconds."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", LOOK], env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
        return msgspec.json.decode(done.stdout, type=CudaParts)
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError):
        return None


def preload_problem(python: str, parts: CudaParts, environ: Mapping[str, str], limit: float) -> str | None:
    """Returns why the memory saver cannot be loaded, as the dynamic loader says it, with the environment that an engine gets; None when it can."""
    if parts.preload is None:
        return "torch_memory_saver is not in this environment"
    path = ":".join([*parts.libraries, *filter(None, [environ.get("LD_LIBRARY_PATH")])])
    try:
        done = subprocess.run(
            [python, "-I", "-c", f"import ctypes; ctypes.CDLL({parts.preload!r})"],
            env={**environ, "LD_LIBRARY_PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stderr[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2] if done.returncode else None
