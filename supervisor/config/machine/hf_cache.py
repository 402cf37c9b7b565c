"""This module finds the folder of the local Hugging Face cache for a model's name on the hub (`org/name`). It downloads nothing."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_INDEX_LIMIT: Final = 64 << 20


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str] = {}


def is_name(model: str) -> bool:
    """Returns whether it could be such a name. A folder of that name, relative to the file, goes before."""
    return _NAME.fullmatch(model) is not None


def cache(environ: Mapping[str, str]) -> Path:
    """Returns the folder in which `hf download` and transformers keep models."""
    if (named := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")) is not None:
        return Path(os.path.expanduser(named))
    default = os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(environ.get("HF_HOME") or default)) / "hub"


def snapshot(name: str, environ: Mapping[str, str]) -> Path | None:
    """Returns the complete folder of the model's main revision, or None. Raises nothing."""
    home = cache(environ) / f"models--{name.replace('/', '--')}"
    try:
        revision = (home / "refs" / "main").read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    folder = home / "snapshots" / revision
    return folder if revision and "/" not in revision and _complete(folder) else None


def _complete(folder: Path) -> bool:
    """Downloads are links that appear one by one; the index names them all."""
    if not (folder / "config.json").is_file():
        return False
    try:
        with open(folder / "model.safetensors.index.json", "rb") as file:
            wanted = set(msgspec.json.decode(file.read(_INDEX_LIMIT), type=_Index).weight_map.values())
    except FileNotFoundError:
        return any(entry.is_file() for entry in folder.glob("*.safetensors"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(wanted) and all((folder / os.path.basename(name)).is_file() for name in wanted)
