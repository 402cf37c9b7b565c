"""Trainers hand over weights, which become versions that engines load, and checkpoints, from which a restart resumes.

How weights travel is a `WeightTransport`, one a pipeline: what a trainer says it has written is adopted as a version, an engine is told
where the version lies, and it is dropped when nobody needs it. Today's is a folder in shared memory. Names of snapshot folders are known
here, in `trainers.weights`, and in the client that writes them, and nowhere else.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from supervisor.attempt.checkpoints import Checkpoints, Remembered
from supervisor.scheduler.actions import AdoptSnapshot, DropSnapshot, RecordCheckpoint
from supervisor.scheduler.events import ActionFailed, CheckpointKept, SnapshotAdopted, Told
from trainers import weights
from trainers.protocol.ids import PipelineId, Version
from trainers.remove_tree import remove_what_can_be


class WeightTransport(Protocol):
    """How the published weights of one pipeline come from its trainer to its engines. Its calls may block on a disk."""

    @property
    def inbox(self) -> str:
        """Where the trainer's client leaves what it publishes; the client is told at its start."""

    def adopt(self, name: str, version: Version) -> None:
        """Makes what the trainer has left as `name` this version, in one step.

        Raises SnapshotError, OSError: no engine of the pipeline could use it, and nothing of it is left.
        """

    def locate(self, version: Version) -> str:
        """Returns what an engine is told to load; version 0 is the model path itself."""

    def drop(self, version: Version) -> None:
        """Removes a version that nobody needs any more; nothing happens when it is not there. Raises OSError."""

    def abandon(self) -> None:
        """Removes what was being written: the trainer has died. Versions stay. Raises OSError."""


@dataclass(slots=True)
class SharedMemory:
    """Snapshots are folders in `folder` in Hugging Face layout, which every engine can load.

    A snapshot must have the names, shapes and types of the tensors of `model`: an engine that is given others dies, or keeps its old weights
    without a word (SGLang).
    """

    folder: Path
    model: Path
    _layout: weights.Layout | None = field(default=None, init=False)

    @property
    def inbox(self) -> str:
        return str(self.folder)

    def adopt(self, name: str, version: Version) -> None:
        if self._layout is None:
            self._layout = weights.layout_of(self.model)
        weights.adopt(self.folder, name, version, self._layout)

    def locate(self, version: Version) -> str:
        return str(self.model) if version == 0 else os.fspath(weights.path_of(self.folder, version))

    def drop(self, version: Version) -> None:
        weights.drop(self.folder, version)

    def abandon(self) -> None:
        weights.abandon(self.folder)


def folder_of(shm: Path, pipeline: PipelineId) -> Path:
    """Returns the folder of a pipeline's snapshots in the shared memory of a run."""
    return shm / pipeline


def make_folders(shm: Path, pipelines: Iterable[PipelineId]) -> None:
    """Makes the folders anew: snapshots are worth nothing after the run that made them. Raises OSError."""
    remove_what_can_be(shm)
    shm.mkdir(mode=0o700)  # what is there still is somebody else's
    for pipeline in pipelines:
        folder_of(shm, pipeline).mkdir(mode=0o700)


class TrainerOutput:
    """Takes what every pipeline's trainer hands over, and knows where its next life resumes."""

    def __init__(
        self,
        transports: Mapping[PipelineId, WeightTransport],
        checkpoints: Mapping[PipelineId, Checkpoints],
    ) -> None:
        self._transports = transports
        self._checkpoints = checkpoints

    def transport(self, pipeline: PipelineId) -> WeightTransport:
        return self._transports[pipeline]

    async def resume_point(self, pipeline: PipelineId) -> Remembered:
        """Returns the checkpoints that are on the disk now, and the last version that was published."""
        return await to_thread.run_sync(self._checkpoints[pipeline].usable)

    async def adopt(self, action: AdoptSnapshot) -> SnapshotAdopted | ActionFailed:
        try:
            await to_thread.run_sync(self._transports[action.pipeline].adopt, action.name, action.version)
        except weights.SnapshotError as error:
            return ActionFailed(id=action.id, reason=str(error), code=error.code)
        await to_thread.run_sync(self._checkpoints[action.pipeline].published, action.version)
        return SnapshotAdopted(id=action.id)

    async def drop(self, action: DropSnapshot) -> Told:
        """Raises OSError."""
        await to_thread.run_sync(self._transports[action.pipeline].drop, action.version)
        return Told(id=action.id)

    async def record(self, action: RecordCheckpoint) -> CheckpointKept:
        """Raises OSError: the checkpoint is not there, or the disk does not take the record."""
        await to_thread.run_sync(self._checkpoints[action.pipeline].record, action.step, action.path)
        return CheckpointKept(id=action.id)
