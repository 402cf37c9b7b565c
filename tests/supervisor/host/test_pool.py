"""Children of the prewarmed pool are children like any other, and outlive their server."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from supervisor.host.processes import bootstrap
from supervisor.host.processes import pool as pool_module
from supervisor.host.processes.group import Command, Group, Processes, SpawnFailed, Status
from supervisor.host.processes.pool import PRELOAD, PrewarmedPool
from supervisor.host.processes.proc import read_stat, table, tag_of
from trainers.protocol.child_env import CHECKOUT, CLIENT

LIGHT = ("json", "supervisor.host.processes.pool_child")
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """For what no event tells: another process's words or end."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


class Pool:
    def __init__(self, processes: Processes, prewarm: PrewarmedPool, folder: Path) -> None:
        self.processes, self.prewarm, self.folder = processes, prewarm, folder

    def command(self, program: str, *argv: str, pass_fds: tuple[int, ...] = (), env: dict[str, str] | None = None) -> Command:
        """A child that runs `program` as its module."""
        (self.folder / "child.py").write_text(program)
        given = {"PATH": "/usr/bin", "TRAINSHED_TAG": "t:p1:1", "PYTHONPATH": f"{CLIENT}:{self.folder}", **(env or {})}
        return Command(argv=argv, module="child", env=given, cwd=self.folder, log=self.folder / "log", pass_fds=pass_fds)

    async def group(self, program: str, count: int = 1) -> Group:
        return await self.processes.spawn([self.command(program)] * count, tag="t:p1:1")

    @property
    def server(self) -> int:
        (pid,) = self.prewarm.pids()
        return pid

    async def says(self, count: int) -> list[str]:
        log = self.folder / "log"
        await until(lambda: log.read_text().count("\n") >= count)
        return log.read_text().split("\n")[:-1]


@asynccontextmanager
async def pool(folder: Path, modules: tuple[str, ...] = LIGHT) -> AsyncIterator[Pool]:
    bootstrap.become_subreaper()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)}
    prewarm = PrewarmedPool(env=env, tag="t:pool:1", directory=folder, log=folder / "pool.log", modules=modules)
    async with Processes(prewarm).running() as processes:
        yield Pool(processes, prewarm, folder)


def called(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def lives(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.alive


async def test_a_child_is_like_any_other(tmp_path: Path) -> None:
    program = """
import os, sys, signal, resource
print(os.getsid(0) == os.getpid(), sys.argv[1:], os.getcwd() == os.path.dirname(__file__), __name__, __spec__.name)
print(sorted(os.environ), sys.stdin.read() == "", oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_CORE)[0])
print(os.read(FD, 9), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGINT) == signal.default_int_handler)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith(("SigBlk", "SigIgn"))])
print([name for name in sys.modules if name.partition(".")[0] in ("supervisor", "trainers")], "json" in sys.modules)
print(sum(os.path.exists(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")))
print("said on the other stream", file=sys.stderr)
"""
    reading, writing = os.pipe()
    os.dup2(reading, 77)
    os.close(reading)
    os.write(writing, b"word")
    async with pool(tmp_path) as on:
        group = await on.processes.spawn([on.command(program.replace("FD", "77"), "a", "b c", pass_fds=(77,))], tag="t:p1:1")
        assert (await group.exited()).status == Status(code=0)
        assert await on.says(7) == [
            "True ['a', 'b c'] True __main__ child",
            "['PATH', 'PYTHONPATH', 'TRAINSHED_TAG'] True 0o77 0",
            "b'word' True True",
            "['0000000000000000', '0000000001001000']",  # Python's own: SIGPIPE and SIGXFSZ
            "[] True",
            "5",  # input, output, error, the lifeline, and ours
            "said on the other stream",
        ]
        assert not await group.kill()
    os.close(77)
    os.close(writing)


async def test_ends_are_exact(tmp_path: Path) -> None:
    program = """
import os, signal, sys
match sys.argv[1].split():
    case ["exit", code]: sys.exit(int(code))
    case ["kill", number]: os.kill(os.getpid(), int(number)); signal.pause()
    case ["raise"]: raise RuntimeError("why it failed")
    case ["atexit"]:
        import atexit
        atexit.register(print, "at the end")
"""
    wanted = {
        "exit 0": Status(code=0), "exit 3": Status(code=3), "exit 255": Status(code=255), "raise": Status(code=1),
        "kill 9": Status(signal=9), "kill 11": Status(signal=11), "kill 15": Status(signal=15), "atexit": Status(code=0),
    }  # fmt: skip
    async with pool(tmp_path) as on:
        group = await on.processes.spawn([on.command(program, what) for what in wanted], tag="t:p1:1")
        assert [exit_.status for exit_ in await group.ended()] == list(wanted.values())
        log = (tmp_path / "log").read_text()
        assert "RuntimeError: why it failed" in log
        assert "at the end" in log
        await group.kill()


async def test_the_supervisors_main_is_never_run_in_a_child(tmp_path: Path) -> None:
    """However the supervisor was started; here its __main__ is pytest's, or that of pytest's worker, which has no file."""
    main = getattr(sys.modules["__main__"], "__file__", pytest.__file__)
    async with pool(tmp_path) as on:
        group = await on.group(
            "import sys; print(sys.modules['__main__'].__file__); print(hasattr(sys.modules['__mp_main__'], '__file__'), 'pytest' in sys.modules)"
        )
        await group.ended()
        said = await on.says(2)
        await group.kill()
    assert said == [str(tmp_path / "child.py"), "False False"]
    assert str(main) not in (tmp_path / "pool.log").read_text()


async def test_children_of_a_killed_server_live_on_and_are_watched(tmp_path: Path) -> None:
    program = "import signal, sys\nprint(1, flush=True)\nsignal.signal(15, lambda *_: sys.exit(9)); signal.pause()"
    async with pool(tmp_path) as on:
        group, first = await on.group(program, 2), on.server
        await on.says(2)
        os.kill(first, signal.SIGKILL)
        await anyio.sleep(0.05)
        assert all(lives(member.pid) for member in group.members)
        os.kill(group.members[0].pid, signal.SIGTERM)
        with anyio.fail_after(5):
            assert (await group.exited()).status == Status(code=9), "the kernel hands the orphan and its code to us"
        assert group.members[1].exit is None
        assert not await group.kill()
        again = await on.group("raise SystemExit(4)")
        assert on.server != first
        assert (await again.exited()).status == Status(code=4)
        await again.kill()
        assert on.prewarm.starts == 2


async def test_the_whole_tree_is_killed(tmp_path: Path) -> None:
    program = """
import os, subprocess, time
subprocess.Popen(["setsid", "sleep", "60"])
if os.fork() == 0: os.setsid()
print(os.getpid(), flush=True); time.sleep(60)
"""
    async with pool(tmp_path) as on:
        group = await on.group(program)
        said = [int(word) for word in await on.says(2)]
        await until(
            lambda: any(stat.session == stat.pid != group.members[0].pid and tag_of(stat.pid) == "t:p1:1" for stat in table().values())
        )
        pids = await group.pids()
        assert pids >= set(said)
        assert len(pids) == 3
        with anyio.fail_after(5):
            assert not await group.kill()
        assert not any(lives(pid) for pid in pids)
        assert lives(on.server)


async def test_failures_are_typed(tmp_path: Path) -> None:
    async with pool(tmp_path) as on:
        bad = Command(argv=(), module="child", env={"TRAINSHED_TAG": "t:p1:1"}, cwd=tmp_path, log=tmp_path / "no" / "log")
        with pytest.raises(SpawnFailed, match="no such file"):
            await on.processes.spawn([bad], tag="t:p1:1")
        assert lives(on.server), "others live of it"
        missing = await on.processes.spawn([on.command("raise SystemExit(0)")], tag="t:p1:1")
        await missing.ended()
        assert on.processes.ours() == {on.server, missing.members[0].pid}


async def test_the_end_ends_all(tmp_path: Path) -> None:
    before, others = set(os.listdir("/proc/self/fd")), {stat.pid for stat in table().values() if stat.parent == os.getpid()}
    async with pool(tmp_path) as on:
        group, server = await on.group("import time; time.sleep(60)", 2), on.server
        children = {
            stat.pid for stat in table().values() if stat.parent == os.getpid()
        } - others  # earlier tests may have left a pool of theirs
        assert children == {server}, "no tracker, no other process"
    assert not any(lives(pid) for pid in (server, *(member.pid for member in group.members)))
    assert set(os.listdir("/proc/self/fd")) == before
    assert set(os.listdir(tmp_path)) - {"__pycache__"} == {"child.py", "log", "pool.log"}, "its socket is gone"


async def test_a_child_dies_with_the_supervisor(tmp_path: Path) -> None:
    """Even when its server, its session and the guardian know nothing of it."""
    program = f"""
import anyio, os, sys
from pathlib import Path
from supervisor.host.processes.pool import PrewarmedPool
from supervisor.host.processes.group import Command, Processes
folder = Path({str(tmp_path)!r})
async def main():
    env = {{"PYTHONPATH": {f"{CHECKOUT}:{tmp_path}"!r}, "TRAINSHED_TAG": "t:p1:1"}}
    prewarm = PrewarmedPool(env=env, tag="t:pool:1", directory=folder, log=folder / "pool.log", modules={LIGHT!r})
    group = await Processes(prewarm).spawn([Command(argv=(), module="child", env=env, cwd=folder, log=folder / "log")], tag="t:p1:1")
    print(group.members[0].pid, *prewarm.pids(), flush=True)
    await anyio.sleep(60)
anyio.run(main)
"""
    (tmp_path / "child.py").write_text("import time\nwhile True: time.sleep(0.01)")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    async with await anyio.open_process([sys.executable, "-P", "-c", program], env=env, stderr=None) as supervisor:
        assert supervisor.stdout is not None
        with anyio.fail_after(20):
            pids = [int(word) for word in (await supervisor.stdout.receive()).split()]
            supervisor.kill()
            await until(lambda: not any(lives(pid) for pid in pids))


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_real_preload_starts_no_thread_and_opens_nothing(tmp_path: Path, anyio_backend: str) -> None:
    async with pool(tmp_path, PRELOAD) as on:
        group = await on.group(
            "import os, sys\nprint(len(os.listdir('/proc/self/task')), *(name in sys.modules for name in"
            " ('torch', 'transformers.models.qwen2.modeling_qwen2', 'aiohttp', 'safetensors.torch')))\n"
            "import torch; print(torch.cuda.is_initialized(), torch.get_num_threads(), float(torch.ones(3).sum()))"
        )
        await group.ended()
        assert await on.says(2) == ["1 True True True True", "False 1 3.0"]
        server = read_stat(on.server)
        assert server is not None
        assert server.threads == 1
        with anyio.fail_after(1):  # what the pool is for
            await on.group("import time; time.sleep(60)", 4)


async def test_a_child_has_a_name_of_its_own_in_ps(tmp_path: Path) -> None:
    """Not the pool's, which has one of its own, too."""
    async with pool(tmp_path) as on:
        (tmp_path / "named.py").write_text("def run():\n    print(open('/proc/self/comm').read().strip(), flush=True)\n")
        command = on.command("", env={"TRAINSHED_TAG": "run:p1/trainer:1", "RANK": "3"})
        command = Command(argv=["named:run"], module="trainshed.launch", env=command.env, cwd=command.cwd, log=command.log)
        group = await on.processes.spawn([command], tag="run:p1/trainer:1")
        await group.exited()
        assert await on.says(1) == ["p1/trainer/3"]
        assert called(on.server) == "prewarm"
        assert not await group.kill()


async def test_codes_of_children_of_a_server_that_is_stopped_are_exact(tmp_path: Path) -> None:
    """The kernel keeps them until the server is killed for its silence."""
    program = (
        "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(int(sys.argv[1])))\nprint(1, flush=True)\nwhile True: signal.pause()"
    )
    async with pool(tmp_path) as on:
        group = await on.processes.spawn([on.command(program, code) for code in ("0", "7", "9")], tag="t:p1:1")
        await on.says(3)
        os.kill(on.server, signal.SIGSTOP)
        for member, number in zip(group.members, (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL), strict=True):
            os.kill(member.pid, number)
        with anyio.fail_after(10):
            exits = await group.ended()
        assert [exit_.status for exit_ in exits] == [Status(code=0), Status(code=7), Status(signal=9)]
        await group.kill()


@pytest.mark.parametrize("when", ["ready", "importing"])
async def test_a_server_that_does_not_answer_is_replaced(tmp_path: Path, when: str) -> None:
    """Who waits for a child of it gets one of the next server; children of the first live on."""
    told: list[tuple[int, str]] = []
    bootstrap.become_subreaper()
    (tmp_path / "slow.py").write_text("import time; time.sleep(0.5)")
    modules = LIGHT if when == "ready" else ("slow", *LIGHT)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{CHECKOUT}:{tmp_path}"}
    prewarm = PrewarmedPool(
        env=env, tag="t:pool:1", directory=tmp_path, log=tmp_path / "pool.log", modules=modules, replaced=lambda *words: told.append(words)
    )
    async with Processes(prewarm).running() as processes, anyio.create_task_group() as tasks:
        on = Pool(processes, prewarm, tmp_path)
        tasks.start_soon(processes.watch_pool)
        first = on.server
        groups = []
        if when == "ready":
            groups.append(await on.group("import signal; print(1, flush=True); signal.pause()"))
            await on.says(1)
        os.kill(first, signal.SIGSTOP)
        with anyio.fail_after(20):
            again = await on.group("raise SystemExit(4)")
            assert (await again.exited()).status == Status(code=4)
        assert told == [(first, "it is stopped")]
        assert on.server != first
        assert all(lives(group.members[0].pid) for group in groups)
        for group in (*groups, again):
            await group.kill()
        tasks.cancel_scope.cancel()


async def test_a_server_that_answers_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PING_SECONDS", 0.01)
    async with pool(tmp_path) as on, anyio.create_task_group() as tasks:
        first = on.server
        tasks.start_soon(on.processes.watch_pool)
        program = "import signal, sys, time; time.sleep(0.1); raise SystemExit(int(sys.argv[1]) + (signal.getsignal(10) != 0))"
        for code in range(5):
            group = await on.processes.spawn([on.command(program, str(code))], tag="t:p1:1")
            assert (await group.exited()).status == Status(code=code)
            await group.kill()
        assert on.server == first
        tasks.cancel_scope.cancel()
