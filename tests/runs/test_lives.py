"""What is told of a life is of that life: its last lines, its exit, its environment."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from supervisor.config.child_environment import Chosen
from supervisor.config.schema.tables import Config, EngineTable, HealthTable, PipelineTable, TrainerTable
from supervisor.host.channel import ChannelFailure, FailureKind
from supervisor.host.gpus.meter import Gpu
from supervisor.host.ports import Ports
from supervisor.host.processes import bootstrap
from supervisor.host.processes.group import Command, Processes
from supervisor.runtime import gateways, ranks, run_facts
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import GroupLifecycle, Groups
from supervisor.runtime.run_facts import ChildEnvironment, Pipelines, RunFacts, RunPaths
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from trainers.protocol.ids import EngineId, GpuId, Incarnation, PipelineId

pytestmark = pytest.mark.anyio
P1 = PipelineId("p1")
ENGINE = EngineId(P1, 0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Log:
    """Remembers what was told, and how loud."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.told.append((level, event, fields))

    def bind(self, **_: object) -> "Log":
        return self


async def test_the_last_lines_of_a_life_are_its_own(tmp_path: Path) -> None:
    bootstrap.become_subreaper()
    log, fed = Log(), []
    came = anyio.Event()

    def feed(event: ev.Event) -> None:
        fed.append(event)
        came.set()

    async def nothing(*_: object) -> None:
        pass

    async with Processes().running() as processes, anyio.create_task_group() as tasks:
        journal: Any = SimpleNamespace(spawned=nothing)
        not_used: Any = None
        lifecycle = GroupLifecycle(Groups(processes, journal), Loop(feed, tasks.start_soon, log), not_used, HealthTable(), str)
        for number, program in enumerate(("print('one'); print('ValueError: first')", "print('two')"), 1):
            env = {"PATH": os.environ["PATH"], "TRAINSHED_TAG": f"r:{ENGINE}:{number}"}
            argv = (sys.executable, "-I", "-S", "-c", f"{program}; raise SystemExit(3)")
            command = Command(argv=argv, env=env, cwd=tmp_path, log=tmp_path / "p1.engine.0.log")
            came = anyio.Event()
            with anyio.fail_after(20):
                await lifecycle.begin(ENGINE, Incarnation(number), [command], nothing)
                await came.wait()
        tasks.cancel_scope.cancel()
    lines = [fields["last_lines"] for _, event, fields in log.told if event == "member ended"]
    assert lines == [["one", "ValueError: first"], ["two"]]
    assert [event.note for event in fed] == ["error: ValueError: first", "error: two"]


@pytest.mark.parametrize(("dies", "told"), [(True, 0), (False, 1)])
async def test_a_gateway_whose_channel_ends_is_told_by_its_exit_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, dies: bool, told: int
) -> None:
    monkeypatch.setattr(gateways, "EXIT_SECONDS", 0.2)
    fed: list[ev.Event] = []

    async def ended() -> None:
        await anyio.sleep(0.01 if dies else 30)

    async with anyio.create_task_group() as tasks:
        lifecycle: Any = SimpleNamespace(live=lambda _: SimpleNamespace(stopping=False, group=SimpleNamespace(ended=ended)))
        not_used: Any = None
        loop = Loop(fed.append, tasks.start_soon, not_used)
        gateways.Gateways(not_used, lifecycle, loop, not_used)._failed(P1, Incarnation(1), ChannelFailure(FailureKind.CLOSED))
        assert not fed, "not at once: a death closes descriptors a moment before it is seen"
    assert len(fed) == told
    assert [event.reason for event in fed if isinstance(event, ev.PeerFailed)] == ["the peer closed its end"][:told]


async def test_f6_no_engine_is_confirmed_gone_while_something_of_ours_has_its_port(tmp_path: Path) -> None:
    """A younger child of ours that is no member: it cannot be told from something that the engine has left."""

    async def nothing(*_: object) -> None:
        pass

    async with Processes().running() as processes, anyio.create_task_group() as tasks:
        journal: Any = SimpleNamespace(spawned=nothing, gone=lambda _: None)
        ports = Ports(27500, 27563, folder=tmp_path)
        loop = Loop(lambda _: None, tasks.start_soon, Log())
        lifecycle = GroupLifecycle(Groups(processes, journal), loop, ports, HealthTable(release_deadline_s=0.3), str)
        window = lifecycle.reserve(ENGINE)
        env = {"PATH": os.environ["PATH"], "TRAINSHED_TAG": f"r:{ENGINE}:1"}
        argv = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")
        with anyio.fail_after(20):
            await lifecycle.begin(ENGINE, Incarnation(1), [Command(argv=argv, env=env, cwd=tmp_path, log=tmp_path / "log")], nothing)
            listens = (
                f"import socket, sys; s = socket.create_server(('127.0.0.1', {window.first + 3})); print(1, flush=True); sys.stdin.read()"
            )
            async with await anyio.open_process([sys.executable, "-c", listens], stderr=None) as child:
                assert child.stdin is not None
                assert child.stdout is not None
                await child.stdout.receive()
                held = await lifecycle.end(do.StopGroup(id=1, group=ENGINE, incarnation=Incarnation(1), kill=True))
                await child.stdin.aclose()
            freed = await lifecycle.end(do.StopGroup(id=2, group=ENGINE, incarnation=Incarnation(1), kill=True))
        ports.close()
        tasks.cancel_scope.cancel()
    assert not held.confirmed
    assert held.note.startswith(f"port {window.first + 3} is still held by pid {child.pid}")
    assert freed.confirmed


def test_what_a_trainer_does_not_get_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of every trainer at every start it would be noise."""
    dropped = {"p1": ("A", "B"), "p2": ("A", "B"), "p3": ("B",)}
    log = Log()
    trainer = TrainerTable(gpus=[0], cwd=str(tmp_path), command=["x"])
    tables = [PipelineTable(name, EngineTable("model", [0]), trainer) for name in dropped]
    pipelines = Pipelines(Config(tables), (Gpu(GpuId(0), "", None, None, "virtual:0"),), {PipelineId(name): "" for name in dropped}, {})
    directory: Any = SimpleNamespace(path=tmp_path, log_of=lambda *_: tmp_path / "log", run_id="r")
    not_used: Any = None
    facts = RunFacts(pipelines, RunPaths(directory, tmp_path), ChildEnvironment({}, tmp_path))
    group = ranks.Ranks(facts, not_used, Loop(not_used, not_used, log), not_used)
    for name, life in (("p1", 1), ("p2", 1), ("p1", 2), ("p3", 1)):
        monkeypatch.setattr(run_facts, "choose", lambda *_, name=name: Chosen({}, dropped[name]))
        start = do.StartTrainer(id=1, pipeline=PipelineId(name), incarnation=Incarnation(life), steps_done=0, restore=False)
        group._command(start, 0, [0], {}, {}, ())
    assert [(level, fields["names"]) for level, _, fields in log.told] == [
        ("debug", ["A", "B"]),
        ("debug", ["B"]),
    ]
