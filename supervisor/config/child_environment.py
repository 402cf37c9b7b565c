"""This module decides which variables of our own environment a child sees. The environment comes as an argument.

Children get what is on the list, what the configuration's `pass_env` patterns add and what its `env` sets; everything else is
dropped, so that a run does not depend on the shell that started it.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from trainers.protocol.child_env import PREFIX

Child = Literal["engine", "trainer", "gateway"]

_ALL: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_COMPUTE: Final = (
    "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_*", "CUDA_MODULE_LOADING", "CUDNN_*", "NVIDIA_*", "NCCL_*",
    "GLOO_*", "TORCH_*", "TORCHINDUCTOR_*", "PYTORCH_*", "TRITON_*", "HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "TOKENIZERS_*",
    "XDG_CACHE_HOME", "OMP_*", "MKL_*", "OPENBLAS_*", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy",
    "https_proxy", "no_proxy", "all_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
_PYTHON: Final = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYENV_ROOT", "PYENV_VERSION")
"""Which environment the caller's `python` belongs to."""
DEFAULTS: Final[Mapping[Child, tuple[str, ...]]] = {
    "engine": (*_ALL, *_COMPUTE, "SGLANG_*", "SGL_*", "FLASHINFER_*", "TVM_FFI_*", "DG_*"),
    "trainer": (*_ALL, *_COMPUTE, "WANDB_*", "MLFLOW_*", "TENSORBOARD_*", *_PYTHON),
    "gateway": _ALL,
}
"""Patterns of names (fnmatch, case-sensitive) that each kind of child gets without being asked for."""
NEVER: Final = (
    f"{PREFIX}*",
    "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Ours to set; passed on neither by default nor by pattern."""
SECRET: Final = ("*_KEY", "*_TOKEN", "*_SECRET", "*_PASSWORD", "*_PASSWD", "*_CREDENTIALS")
"""Names whose values are registered as secrets of the log."""


class Chosen(NamedTuple):
    """`kept` with values; `dropped` by name only, sorted."""

    kept: dict[str, str]
    dropped: tuple[str, ...]


def choose(child: Child, environ: Mapping[str, str], pass_env: Iterable[str] = (), env: Mapping[str, str] | None = None) -> Chosen:
    """Returns the part of `environ` that a child of this kind gets, with `env` over it."""
    patterns = (*DEFAULTS[child], *pass_env)
    kept = {name: value for name, value in environ.items() if matches(name, patterns) and not matches(name, NEVER)}
    dropped = tuple(sorted(name for name in environ if name not in kept))
    return Chosen({**kept, **(env or {})}, dropped)


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def secrets(environ: Mapping[str, str]) -> list[str]:
    """Returns values that should never be seen in a log."""
    return [value for name, value in environ.items() if matches(name.upper(), SECRET) and value]
