"""A kind of engine is a file and a row: this one is sketched here, and nothing else of the runtime knows it."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest

from engines.control import EngineControl, EnginePoisoned
from supervisor.attempt.directory import new_attempt
from supervisor.attempt.journal import Gone, Journal, Spawned, read
from supervisor.config.schema.tables import Config, EngineTable, HealthTable, HostTable, PipelineTable, TrainerTable
from supervisor.host.gpus.meter import visible
from supervisor.host.gpus.virtual import VirtualGpus
from supervisor.host.ports import Ports
from supervisor.host.processes import bootstrap
from supervisor.host.processes.group import Command, Processes
from supervisor.host.processes.proc import command_of
from supervisor.observe.logs import Logs
from supervisor.runtime.driver import Loop
from supervisor.runtime.engines import Engines
from supervisor.runtime.group_lifecycle import GroupLifecycle, Groups
from supervisor.runtime.kinds import registry
from supervisor.runtime.kinds.engine_kind import EngineLife, EngineStart, Log
from supervisor.runtime.run_facts import ChildEnvironment, Pipelines, RunFacts, RunPaths
from supervisor.runtime.snapshots import SharedMemory, folder_of, make_folders
from supervisor.scheduler import events as ev
from supervisor.scheduler.actions import LoadWeights, Pause, StartGroup, StopGroup, Wake
from trainers.protocol.child_env import GPUS, RUN, TAG
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version

HARNESS = Path(__file__).resolve().parents[2] / "harness"
P1 = PipelineId("p1")
ENGINE, LIFE = EngineId(P1, 0), Incarnation(3)
STAND_IN = "import sys; sys.path.insert(0, sys.argv.pop(1)); import faulty_engine; faulty_engine.main(sys.argv[1:])"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Vllm:
    """A server with an interpreter of its own, that reads its key from a file; the scripted engine stands for it."""

    poisoned: ClassVar[bool] = False

    def __init__(self, facts: RunFacts, log: Log) -> None:
        self.looked = False

    async def look(self) -> None:
        self.looked = True

    def prepare(self, start: EngineStart) -> EngineLife:
        assert self.looked
        folder = start.facts.paths.scratch(start.engine, start.incarnation)
        folder.mkdir(parents=True)
        (folder / "keys").write_text(json.dumps({"api-key": start.endpoint.key}))
        directory, environment, gpus = start.facts.paths.directory, start.facts.environment, visible(start.gpus)
        argv = [start.table.python or "", "-I", "-S", "-E", "-c", STAND_IN, str(HARNESS)]
        argv += ["--port", str(start.endpoint.window.first), "--config", str(folder / "keys"), "--model-path", str(start.model)]
        argv += ["--weight-version", "0"]
        inherited = environment.inherited("engine", start.table.pass_env, start.table.env).kept
        env = environment.complete(inherited, start.tag, python_path=None, gpus=gpus)
        return VllmLife([Command(argv=argv, env=env, cwd=directory.path, log=directory.log_of(start.engine))], folder, type(self).poisoned)


class VllmLife(EngineLife):
    def __init__(self, commands: list[Command], folder: Path, poisoned: bool) -> None:
        super().__init__(commands)
        self.folder, self.poisoned = folder, poisoned
        self.followed = False

    async def follow(self, pids: Callable[[], Awaitable[Iterable[int]]]) -> None:
        self.followed = bool(await pids())

    async def trace(self, pids: Iterable[int]) -> None:
        (self.folder / "pids").write_text(" ".join(map(str, pids)))

    async def verify(self, control: EngineControl, version: Version, within: float) -> None:
        if self.poisoned:
            raise EnginePoisoned("not its bytes", 200)

    def clean_up(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()
        self.folder.rmdir()


@dataclass
class Box:
    """One pipeline with one engine of the third kind, and everything that the runtime needs to start it."""

    engines: Engines
    lifecycle: GroupLifecycle
    facts: RunFacts
    journal: Path
    events: list[ev.Event]

    async def start(self) -> ev.GroupReady:
        answer = await self.engines.start(StartGroup(id=1, engine=ENGINE, incarnation=LIFE))
        assert isinstance(answer, ev.GroupReady)
        return answer

    @property
    def scratch(self) -> Path:
        return self.facts.paths.scratch(ENGINE, LIFE)


@asynccontextmanager
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    bootstrap.become_subreaper()
    (tmp_path / "model").mkdir()
    engine = EngineTable(str(tmp_path / "model"), [0, 1], kind="vllm", tp=2, slots=5, python=sys.executable)
    table = PipelineTable("p1", engine, TrainerTable([0], command=["true"]))
    config = Config([table], HostTable(virtual=2), health=HealthTable(start_s=20.0))
    directory, shm, meter = new_attempt(tmp_path, "q"), tmp_path / "shm", VirtualGpus(2)
    make_folders(shm, [P1])
    facts = RunFacts(Pipelines(config, meter.gpus, {}, {}), RunPaths(directory, shm), ChildEnvironment(dict(os.environ), directory.path))
    logs, journal, ports = Logs(None, run="r", console="none"), Journal(directory.journal, lambda: 0.0), Ports(28100, 28199)
    events: list[ev.Event] = []
    try:
        async with Processes().running() as processes, anyio.create_task_group() as tasks:
            loop = Loop(events.append, tasks.start_soon, logs.log)
            lifecycle = GroupLifecycle(Groups(processes, journal), loop, ports, config.health, logs.secrets.hide)
            transport = SharedMemory(folder_of(shm, P1), facts.paths.model(table))
            os.mkdir(transport.locate(Version(1)))
            async with Engines(facts, lifecycle, {P1: transport}, logs.log) as engines:
                yield Box(engines, lifecycle, facts, directory.journal, events)
            tasks.cancel_scope.cancel()
    finally:
        ports.close()
        journal.close()
        directory.close()
        meter.close()


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.KINDS, "vllm", Vllm)


def environ(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.partition("=")[::2] for entry in entries if entry)


async def test_it_starts_loads_and_leaves_nothing(tmp_path: Path) -> None:
    async with box(tmp_path) as on:
        ready = await on.start()
        endpoint = on.engines.endpoint(ENGINE)
        assert endpoint.slots == 5
        assert (on.scratch / "pids").read_text() == " ".join(map(str, ready.pids))
        seen = environ(ready.pids[0])
        assert (seen[GPUS], seen[RUN], seen["CUDA_VISIBLE_DEVICES"]) == ("virtual:0,virtual:1", str(on.facts.paths.directory.path), "")
        assert seen[TAG] == on.facts.paths.tag(ENGINE, LIFE)
        assert "PYTHONPATH" not in seen, "it has an interpreter of its own"
        assert endpoint.key.encode() not in command_of(ready.pids[0])
        assert await on.engines.pause(Pause(id=2, engine=ENGINE, incarnation=LIFE)) == ev.Paused(id=2)
        assert await on.engines.wake(Wake(id=3, engine=ENGINE, incarnation=LIFE, version=Version(1))) == ev.Woken(id=3, version=Version(1))
        stale = await on.engines.load(LoadWeights(id=4, engine=ENGINE, incarnation=Incarnation(2), version=Version(2)))
        assert isinstance(stale, ev.ActionFailed), "an earlier life of it is over"
        gone = await on.lifecycle.end(StopGroup(id=5, group=ENGINE, incarnation=LIFE, kill=False))
        assert gone == ev.GroupGone(id=5, confirmed=True)
        assert not on.scratch.exists()
        assert on.lifecycle.live(ENGINE) is None
        assert on.engines.control(ENGINE, LIFE) is None
        tag = on.facts.paths.tag(ENGINE, LIFE)
        entries = [line.what for line in read(on.journal)]
        assert [entry.group for entry in entries if isinstance(entry, Spawned | Gone)] == [tag, tag]
        assert [type(event) for event in on.events] == [ev.MemberExited]


async def test_it_says_itself_whether_a_load_was_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vllm, "poisoned", True)
    async with box(tmp_path) as on:
        await on.start()
        await on.engines.pause(Pause(id=2, engine=ENGINE, incarnation=LIFE))
        with pytest.raises(EnginePoisoned, match="not its bytes"):
            await on.engines.wake(Wake(id=3, engine=ENGINE, incarnation=LIFE, version=Version(1)))


async def test_what_was_prepared_for_a_start_that_failed_is_cleaned_up(tmp_path: Path) -> None:
    async with box(tmp_path) as on, anyio.create_task_group() as tasks:

        async def start() -> None:
            answers.append(await on.engines.start(StartGroup(id=1, engine=ENGINE, incarnation=LIFE)))

        answers: list[Any] = []
        tasks.start_soon(start)
        while (live := on.lifecycle.live(ENGINE)) is None:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.001)
        os.kill(live.group.members[0].pid, signal.SIGSTOP)  # it is not ready, and stays so
        gone = await on.lifecycle.end(StopGroup(id=2, group=ENGINE, incarnation=LIFE, kill=True))
        assert gone == ev.GroupGone(id=2, confirmed=True)
        assert not on.scratch.exists()
    assert [answer.reason for answer in answers] == ["stopped while it was started"]
