"""What the supervisor must know of a kind of engine to start it, use it and clean up after it."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Protocol

import structlog

from engines.control import EngineControl
from supervisor.config.schema.tables import EngineTable, PipelineTable
from supervisor.host.gpus.meter import Gpu
from supervisor.host.ports import Window
from supervisor.host.processes.child import Command
from supervisor.runtime.run_facts import RunFacts
from trainers.protocol.ids import EngineId, Incarnation, Version

Log = structlog.typing.FilteringBoundLogger


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one incarnation of an engine listens. `key` is this incarnation's only, so that an answer cannot come from another one.

    `slots` is how many requests the engine runs at once.
    """

    url: str
    key: str = field(repr=False)
    window: Window
    slots: int

    @classmethod
    def on(cls, window: Window, slots: int) -> "Endpoint":
        """Returns an endpoint at the first port of the window, with a new key."""
        return cls(f"http://127.0.0.1:{window.first}", token_hex(24), window, slots)


@dataclass(frozen=True, slots=True)
class EngineStart:
    """One start of one engine: what its command lines are made of."""

    facts: RunFacts
    engine: EngineId
    incarnation: Incarnation
    endpoint: Endpoint

    @property
    def pipeline(self) -> PipelineTable:
        return self.facts.pipelines.table(self.engine.pipeline)

    @property
    def table(self) -> EngineTable:
        return self.pipeline.engine

    @property
    def gpus(self) -> list[Gpu]:
        """The engine's bundle."""
        return self.facts.pipelines.bundle(self.engine)

    @property
    def model(self) -> Path:
        return self.facts.paths.model(self.pipeline)

    @property
    def tag(self) -> str:
        return self.facts.paths.tag(self.engine, self.incarnation)


class EngineLife:
    """One incarnation of an engine, prepared: a kind overrides what it does otherwise. Made by `EngineKind.prepare`."""

    retract_flushes: bool = True
    """Whether the cache can be flushed while retracted requests wait (`engines.control.EngineControl`)."""

    def __init__(self, commands: Sequence[Command]) -> None:
        """`commands` are what the members run, the head first."""
        self.commands = commands

    async def ready(self, control: EngineControl, within: float) -> None:
        """Waits until the listener is ours and one token came through the real endpoint. Raises EngineError after `within` seconds each."""
        await control.ready(within)
        await control.canary(within)

    async def follow(self, pids: Callable[[], Awaitable[Iterable[int]]]) -> None:
        """Looks after the processes while the engine starts: one that is killed before it is ready leaves as much. Cancelled at ready."""

    async def trace(self, pids: Iterable[int]) -> None:
        """Notes what these processes of a ready engine have open that would outlive them."""

    async def verify(self, control: EngineControl, version: Version, within: float) -> None:
        """Compares the bytes of a version that was just loaded with other engines', now and then. Raises EnginePoisoned, EngineError."""

    def clean_up(self) -> None:
        """Removes what the processes have left; nothing of this incarnation lives."""


class EngineKind(Protocol):
    """A kind of engine, for all engines of that kind in a run."""

    def __init__(self, facts: RunFacts, log: Log) -> None: ...

    async def look(self) -> None:
        """Finds out, before anything is started, what every engine of the kind needs to know of this machine. Raises nothing."""

    def prepare(self, start: EngineStart) -> EngineLife:
        """Makes what the members need besides processes, and their commands. Raises SpawnFailed, OSError."""
