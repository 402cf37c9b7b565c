"""Groups of real processes: exit codes, escalation, escapees, failures to start."""

import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from supervisor.host.processes import bootstrap
from supervisor.host.processes.child import Child
from supervisor.host.processes.group import Command, Group, MemberExit, Processes, SpawnFailed, Status, census
from supervisor.host.processes.proc import Identity, read_stat

PYTHON = (sys.executable, "-I", "-S", "-c")
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """For what no event tells: another process's words or end."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


class Host:
    """Spawns groups of small programs into one folder."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.processes, self.folder = processes, folder

    def command(self, *argv: str, env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()) -> Command:
        given = {"PATH": os.environ["PATH"], "TRAINSHED_TAG": "t:p1:1", **(env or {})}
        return Command(argv=argv, env=given, cwd=self.folder, log=self.folder / "log", pass_fds=pass_fds)

    async def group(self, *programs: str) -> Group:
        return await self.processes.spawn([self.command(*PYTHON, program) for program in programs], tag="t:p1:1")

    async def says(self, count: int) -> list[int]:
        """The numbers that the programs have written, as soon as there are `count`."""
        log = self.folder / "log"
        await until(lambda: len(log.read_text().split()) >= count)
        return [int(word) for word in log.read_text().split()]


@asynccontextmanager
async def host(folder: Path) -> AsyncIterator[Host]:
    bootstrap.become_subreaper()
    async with Processes().running() as processes:
        yield Host(processes, folder)


def lives(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.alive


async def test_exit_codes_are_exact(tmp_path: Path) -> None:
    codes = (0, 1, 2, 3, 42, 126, 127, 128, 137, 254, 255)
    async with host(tmp_path) as on:
        group = await on.processes.spawn([on.command("sh", "-c", f"exit {code}") for code in codes], tag="t:p1:1")
        assert tuple(exit_.status for exit_ in await group.ended()) == tuple(Status(code=code) for code in codes)
        assert await group.kill() == frozenset()


async def test_signals_are_exact(tmp_path: Path) -> None:
    numbers = [
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGABRT,
        signal.SIGKILL,
        signal.SIGSEGV,
        signal.SIGPIPE,
        signal.SIGTERM,
        signal.SIGRTMIN + 3,
    ]
    async with host(tmp_path) as on:
        commands = [on.command("sh", "-c", f"kill -{int(number)} $$; sleep 9") for number in numbers]
        group = await on.processes.spawn(commands, tag="t:p1:1")
        assert [exit_.status.signal for exit_ in await group.ended()] == [int(number) for number in numbers]
        await group.kill()


async def test_a_child_may_be_nicer_than_we_are(tmp_path: Path) -> None:
    ours, program = os.nice(0), [*PYTHON, "import os; print(os.nice(0), flush=True)"]
    async with host(tmp_path) as on:
        group = await on.processes.spawn([replace(on.command(*program), niceness=3), on.command(*program)], tag="t:p1:1")
        await group.ended()
        assert sorted(await on.says(2)) == sorted([min(19, ours + 3), ours])


async def test_the_first_exit_is_told_whoever_it_is(tmp_path: Path) -> None:
    async with host(tmp_path) as on:
        group = await on.group("import time; time.sleep(60)", "raise SystemExit(3)", "import time; time.sleep(60)")
        with anyio.fail_after(5):
            assert await group.exited() == MemberExit(1, group.members[1].pid, Status(code=3))
            assert (await group.exited()).index == 1
        assert not await group.kill()
        assert [lives(member.pid) for member in group.members] == [False] * 3


async def test_a_polite_group_stops_within_the_grace(tmp_path: Path) -> None:
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print(1, flush=True); signal.pause()"
    async with host(tmp_path) as on:
        group = await on.group(program, program)
        await on.says(2)
        os.kill(group.members[0].pid, signal.SIGSTOP)
        with anyio.fail_after(5):
            assert not await group.stop(grace_s=30)
        assert [exit_.status for exit_ in await group.ended()] == [Status(code=0), Status(code=0)]


async def test_a_stubborn_group_is_killed_after_the_grace(tmp_path: Path) -> None:
    """Ignores TERM, and forks when it gets one."""
    stubborn = """
import os, signal, time
def more(*_):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
signal.signal(15, more); print(os.getpid(), flush=True)
while True: time.sleep(60)
"""
    async with host(tmp_path) as on:
        group = await on.group(stubborn, stubborn)
        await on.says(2)
        with anyio.fail_after(5):
            assert not await group.stop(grace_s=0.3)
        pids = await on.says(4)
        assert not any(lives(pid) for pid in pids)
        assert {exit_.status for exit_ in await group.ended()} == {Status(signal=signal.SIGKILL)}


ESCAPES = {
    "child": "",
    "setsid": "os.setsid()",
    "double fork": "os.setsid()\n    if os.fork(): os._exit(0)",
    "double fork into its own session": "os.setsid()\n    if os.fork(): os._exit(0)\n    os.setsid()",
}


@pytest.mark.parametrize("how", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("dead", [False, True], ids=["leader alive", "leader dead"])
async def test_nothing_of_a_group_escapes(tmp_path: Path, how: str, dead: bool) -> None:
    program = f"""
import os, time
if os.fork() == 0:
    {how or "pass"}
    print(os.getpid(), flush=True); time.sleep(60)
{"os._exit(1)" if dead else "time.sleep(60)"}
"""
    async with host(tmp_path) as on:
        group = await on.group(program)
        (escapee,) = await on.says(1)
        if dead:
            await group.exited()
        assert escapee in await group.pids()
        with anyio.fail_after(5):
            assert not await group.kill()
        assert not lives(escapee)
        assert group.confirmed_ended
        on.processes.reap_orphans()
        assert read_stat(escapee) is None, "an orphan's zombie is collected"


@pytest.mark.parametrize("dead", [False, True], ids=["leader alive", "leader dead"])
async def test_nothing_escapes_that_leaves_everything_behind(tmp_path: Path, dead: bool) -> None:
    """Parent, session, environment and descriptors: the mark stays."""
    program = f"""
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    subprocess.Popen(["setsid", "sh", "-c", "echo $$ > pid; exec 0>&- 1>&- 2>&-; sleep 60"], env={{"PATH": os.environ["PATH"]}})
    os._exit(0)
while not os.path.exists("pid") or not open("pid").read(): time.sleep(0.01)
print(open("pid").read(), flush=True)
{"os._exit(1)" if dead else "time.sleep(60)"}
"""
    async with host(tmp_path) as on:
        group = await on.group(program)
        (escapee,) = await on.says(1)
        if dead:
            await group.exited()
        await until(lambda: (stat := read_stat(escapee)) is not None and stat.parent == os.getpid())
        assert escapee in await group.pids()
        assert (await census({"it": group}))["it"] >= {escapee}
        assert not await group.kill()
        assert not lives(escapee)


async def test_another_group_is_not_touched(tmp_path: Path) -> None:
    async with host(tmp_path) as on:
        first = await on.group("import time; time.sleep(60)")
        other = await on.processes.spawn([on.command("sleep", "60", env={"TRAINSHED_TAG": "t:p2:1"})], tag="t:p2:1")
        await first.kill()
        assert lives(other.members[0].pid)
    assert not lives(other.members[0].pid), "the end of all is the end of each"


async def test_the_end_of_a_watched_grandchild_is_an_exit(tmp_path: Path) -> None:
    program = "import os, time\nif os.fork() == 0:\n    print(os.getpid(), flush=True)\ntime.sleep(60)"
    async with host(tmp_path) as on:
        group = await on.group(program)
        (grandchild,) = await on.says(1)
        seen: list[MemberExit] = []

        async def watch() -> None:
            seen.append(await group.exited())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert grandchild in await group.watch_tree()
            os.kill(grandchild, signal.SIGKILL)
        assert seen == [MemberExit(None, grandchild, Status())]


async def test_failures_to_start_are_typed_and_leave_nothing(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests have left is closed before we count
    (tmp_path / "text").write_text("no program")
    (tmp_path / "folder").mkdir()
    async with host(tmp_path) as on:
        before = set(os.listdir("/proc/self/fd"))
        good = on.command("sleep", "60")
        for bad, why in (
            (on.command("/does/not/exist"), "cannot execute /does/not/exist: no such file"),
            (on.command(str(tmp_path / "text")), "not permitted"),
            (on.command("true", "x" * 200_000), "too long"),
            (Command(argv=["true"], env=good.env, cwd=tmp_path / "nowhere", log=good.log), "no such file"),
            (Command(argv=["true"], env=good.env, cwd=tmp_path, log=tmp_path / "folder"), "directory"),
        ):
            with pytest.raises(SpawnFailed, match=why):
                await on.processes.spawn([good, bad], tag="t:p1:1")
        assert on.processes.ours() == set()
        assert set(os.listdir("/proc/self/fd")) == before


async def test_children_are_recorded_before_they_run(tmp_path: Path) -> None:
    recorded: list[Identity] = []

    async def record(tag: str, children: list[Child]) -> None:
        assert not (tmp_path / "log").read_text()
        recorded.extend(child.identity for child in children)

    async with host(tmp_path) as on:
        commands = [on.command("sh", "-c", "echo 1")] * 2
        group = await on.processes.spawn(commands, tag="t:p1:1", record=record)  # type: ignore[arg-type]
        assert [member.identity for member in group.members] == recorded
        await group.ended()
        assert await on.says(2) == [1, 1]


async def test_what_a_child_gets(tmp_path: Path) -> None:
    """Own session, closed input, private files, default signals, only its descriptors, only its environment."""
    program = (
        "import os, sys, signal, resource; print(os.getsid(0) == os.getpid(), sys.stdin.read() == '', oct(os.umask(0)),"
        "resource.getrlimit(resource.RLIMIT_CORE)[0], open('/proc/self/oom_score_adj').read().strip(),"
        "[line.split()[1] for line in open('/proc/self/status') if line.startswith('SigBlk')],"
        "sorted(int(fd) for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)), os.read(FD, 9), sorted(os.environ))"
    )
    reading, writing = os.pipe()
    os.write(writing, b"word")
    async with host(tmp_path) as on:
        argv = (*PYTHON, program.replace("FD", str(reading)))
        group = await on.processes.spawn([on.command(*argv, pass_fds=(reading,))], tag="t:p1:1")
        await group.ended()
    os.close(reading)
    os.close(writing)
    expected = f"True True 0o77 0 500 ['0000000000000000'] [0, 1, 2, {reading}] b'word' ['PATH', 'TRAINSHED_TAG']"
    said = (tmp_path / "log").read_text().strip().replace("'LC_CTYPE', ", "")
    assert said == expected
    assert oct((tmp_path / "log").stat().st_mode)[-3:] == "600"


async def test_a_cancelled_spawn_and_kill_leave_nothing(tmp_path: Path) -> None:
    async with host(tmp_path) as on:
        for delay in (0.0, 0.005, 0.01, 0.02):
            with anyio.move_on_after(delay):
                group = await on.group("import time; time.sleep(60)")
                await group.kill()
    assert not on.processes.ours()


async def test_no_descriptor_leaks_over_restarts(tmp_path: Path) -> None:
    async with host(tmp_path) as on:
        counts = []
        for _ in range(10):
            group = await on.group("import time; time.sleep(60)")
            await group.kill()
            on.processes.discard(group)
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1] == counts[-1]
