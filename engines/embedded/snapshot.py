"""This module loads weights from a folder in Hugging Face layout into tensors that exist already."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch


class BadSnapshot(Exception):
    """The folder does not hold the weights of this model. What was loaded before may be overwritten in part."""


def load_snapshot(folder: Path, into: Mapping[str, "torch.Tensor"]) -> None:
    """Copy every tensor of `into` from the safetensors files in `folder`, casting to its dtype. Raises BadSnapshot.

    Names and shapes are checked before the first byte is copied; tensors of the folder that nobody wants are left alone.
    """
    try:
        files: list[Any] = [safe_open(path, framework="pt", device="cpu") for path in _files(folder)]
        place = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping
        missing = [name for name in into if name not in place]
        if missing:
            raise BadSnapshot(f"{folder} lacks {len(missing)} of {len(into)} tensors, first {missing[0]}")
        for name, tensor in into.items():
            shape = tuple(place[name].get_slice(name).get_shape())
            if shape != tuple(tensor.shape):
                raise BadSnapshot(f"{folder}: {name} has shape {shape}, this model's has {tuple(tensor.shape)}")
        for name, tensor in into.items():
            tensor.copy_(place[name].get_tensor(name))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSnapshot(f"{folder}: {type(error).__name__}: {error}") from error


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    if any("/" in name for name in names):
        raise BadSnapshot(f"{index} names a file outside its folder")
    return [folder / name for name in names]
