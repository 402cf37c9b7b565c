"""The facts of a run are fixed before anything of it starts: its pipelines, where its files lie, and the environment of its children.

Nothing here changes while the run goes on. What changes has one owner: the groups that live (`group_lifecycle`), the engines' endpoints
(`engines`), what trainers have handed over (`snapshots`).
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from supervisor.attempt.directory import RunDirectory
from supervisor.config.child_environment import Child, Chosen, choose
from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.host.gpus.meter import Gpu, Visible
from trainers.protocol.child_env import GPUS, OUR_PATH, RUN, TAG
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId, tag

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Pipelines:
    """The tables of the configuration, with the GPUs of this box that they name, and URL and key of each pipeline's gateway (no key: it is open)."""

    config: Config
    gpus: tuple[Gpu, ...]
    urls: Mapping[PipelineId, str]
    keys: Mapping[PipelineId, str] = field(repr=False)

    def __iter__(self) -> Iterator[tuple[PipelineId, PipelineTable]]:
        return ((PipelineId(table.name), table) for table in self.config.pipeline)

    def table(self, id: PipelineId) -> PipelineTable:
        return next(table for name, table in self if name == id)

    def select(self, ids: Iterable[int]) -> list[Gpu]:
        """Returns the GPUs with these ids, in this order."""
        known = {gpu.id: gpu for gpu in self.gpus}
        return [known[GpuId(id)] for id in ids]

    def bundle(self, engine: EngineId) -> list[Gpu]:
        """Returns the GPUs of one engine: dp rank r has `gpus[r*tp:(r+1)*tp]`."""
        table = self.table(engine.pipeline).engine
        return self.select(table.gpus[engine.rank * table.tp : (engine.rank + 1) * table.tp])


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where the files of the run lie: the attempt's directory, and its folder in shared memory. Where weights lie, `snapshots` knows."""

    directory: RunDirectory
    shm: Path

    def model(self, pipeline: PipelineTable) -> Path:
        """Returns the model path, which is version 0: the one that is named, or the one that the recipe will fill."""
        model = pipeline.engine.model
        return Path(model).absolute() if isinstance(model, str) else self.directory.models(pipeline.name) / "v0"

    def scratch(self, engine: EngineId, incarnation: Incarnation) -> Path:
        """Returns a folder in shared memory for this incarnation of an engine only. It is not made here."""
        return self.shm / ".tmp" / f"{engine.pipeline}.{engine.rank}.{incarnation}"

    def tag(self, group: GroupId, incarnation: Incarnation) -> str:
        """Returns what the environment of every process of this incarnation shows, so that a lost one can be recognised."""
        return tag(self.directory.run_id, group, incarnation)


@dataclass(frozen=True, slots=True)
class ChildEnvironment:
    """Builds the whole environment of every child of a run, in two steps: what is `inherited`, then what we say to `complete` it.

    `environ` is our own environment, of which a child sees an allow-list; `directory` is the attempt's.
    """

    environ: Mapping[str, str]
    directory: Path

    def inherited(self, child: Child, pass_env: Iterable[str] = (), env: Mapping[str, str] | None = None) -> Chosen:
        """Returns the part of our environment that this kind of child gets, with the operator's `env` over it, and a PATH always."""
        chosen = choose(child, self.environ, pass_env, env)
        return Chosen({"PATH": os.defpath, **chosen.kept}, chosen.dropped)

    def complete(
        self,
        base: Mapping[str, str],
        tag: str,
        *,
        python_path: str | None = OUR_PATH,
        gpus: Visible | None = None,
        ours: Mapping[str, str] = _NOTHING,
    ) -> dict[str, str]:
        """Returns `base` with our own variables over it: nobody else sets these.

        `python_path` is by default that of our own programs; a user's code has another (`trainers.user_code.python_path`), and None is a
        program with an interpreter of its own, which imports nothing of ours and decides about its threads itself. `ours` are further
        variables of `trainers.protocol.child_env`.
        """
        made = {**base, RUN: str(self.directory), TAG: tag, **ours}
        if gpus is not None:
            made |= {GPUS: ",".join(gpus.devices)} if gpus.devices else {}
            made |= {name: value for name, value in gpus.env.items() if python_path is not None or name.startswith("CUDA_")}
        if python_path is not None:
            made |= {"PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"}
        return made


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a child's command line is made of, whatever kind of child it is."""

    pipelines: Pipelines
    paths: RunPaths
    environment: ChildEnvironment
