"""This module saves and loads what a restart resumes from: model, optimizer and step, in a folder that appears complete or not at all."""

import os
import shutil
from pathlib import Path
from typing import Final

import torch

FILE: Final = "state.pt"


class CheckpointError(Exception):
    """A checkpoint cannot be read; an older one may be readable."""


def save(directory: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Writes `directory/step-<step>` and returns its path. A folder of that name from an earlier life is replaced."""
    target = directory / f"step-{step:06d}"
    unfinished = directory / f".{target.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with open(unfinished / FILE, "wb") as file:
        torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(target)
    os.rename(unfinished, target)
    _sync(directory)
    return target


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Fills model and optimizer in place and returns the step after which they were saved. Raises CheckpointError."""
    try:
        state = torch.load(path / FILE, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except Exception as error:  # torch raises whatever the file makes it stumble over
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
