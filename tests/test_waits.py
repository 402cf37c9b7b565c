"""Every await of the supervisor has a limit: each is under a deadline where it stands, or here with what limits it.

Only what leaves our own code is listed: an await of a coroutine of ours is as long as the awaits in it. A sleep is its own limit, and a task group
waits for its tasks. A thread cannot be cancelled, so a deadline around `to_thread.run_sync` limits nothing unless it may be abandoned.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
WATCHED = [path for room in ("runtime", "host") for path in sorted((CHECKOUT / "supervisor" / room).rglob("*.py"))]
OURS = [path for room in ("supervisor", "engines", "trainers") for path in sorted((CHECKOUT / room).rglob("*.py"))]
DEADLINES = ("move_on_after", "fail_after", "move_on_at", "fail_at")
LIMITED_BY_THEMSELVES = ("anyio.sleep", "with anyio.create_task_group")

CALLERS = "every caller has a deadline around it"
ACTION = "the scheduler's deadline for the action, which then goes on without it"
LIMITED_ELSEWHERE = {
    "host/channel.py Channel.run: self._ended.wait": "as long as the channel is open; it is closed when its child is gone",
    "host/channel.py Channel._write: self._outbox_changed.wait": "waits for something to send, as long as the channel is open",
    "host/processes/child.py release: anyio.wait_readable": CALLERS,
    "host/processes/child.py wait_exit: anyio.wait_readable": "as long as a child lives; an end that is asked for has a deadline in its caller",
    "host/processes/group.py Member.ended: with self._collecting": "held while a dead child's code is collected, which has limits of its own",
    "host/processes/group.py Group.exited: changed.wait": "as long as the group lives; its watcher is cancelled with the run",
    "host/processes/group.py Group._scan: to_thread.run_sync": "one pass over /proc; in `kill` it is abandoned at the deadline",
    "host/processes/group.py census: to_thread.run_sync": "one pass over /proc, abandoned when its caller is cancelled",
    "host/processes/pidfd.py kill_all: anyio.wait_readable": CALLERS,
    "host/processes/pool.py PrewarmedPool.begin: with self._starting": "held while a server starts or ends, which have limits",
    "host/processes/pool.py PrewarmedPool.end: with self._starting": "held while a server starts or ends, which have limits",
    "host/processes/pool.py send_all: anyio.wait_writable": CALLERS,
    "host/processes/pool.py receive_number: anyio.wait_readable": CALLERS,
    "runtime/engines.py Engines.__aenter__: self._open.enter_async_context": "makes a client session: nothing is sent",
    "host/unix_socket.py accept: anyio.wait_readable": "as long as a trainer's life, in which ranks may come at any time",
    "runtime/group_lifecycle.py GroupLifecycle._give_back: held.aclose": ACTION,
    "runtime/group_lifecycle.py GroupLifecycle.remove_when_gone.removed: to_thread.run_sync": ACTION,
    "runtime/gateways.py Gateways.start.is_ready: ready.wait": ACTION + "; the stop that follows cancels it",
    "runtime/gpu_memory.py GpuMemory._look: with self._one_question": "held during one measurement, which has a deadline (`MeasureFailed`)",
    "runtime/gpu_memory.py GpuMemory._strangers: to_thread.run_sync": "one pass over /proc, abandoned when its caller is cancelled",
    "runtime/gpu_memory.py GpuMemory.look_on: with self._onlooker": "held for LONGEST_LOOK_S at most",
    "runtime/group_lifecycle.py GroupLifecycle.end: done.wait": "a start that has just been cancelled; spawning has a limit of its own",
    "runtime/group_lifecycle.py GroupLifecycle._port_held: to_thread.run_sync": "one pass over /proc",
    "runtime/group_lifecycle.py GroupLifecycle._not_foreign: to_thread.run_sync": "one pass over /proc",
    "runtime/group_lifecycle.py GroupLifecycle._log_foreign: to_thread.run_sync": "one pass over /proc",
    "runtime/kinds/sglang.py Sglang._ask: to_thread.run_sync": "a subprocess with a time limit",
    "runtime/kinds/sglang.py Traces.look: to_thread.run_sync": "one pass over /proc of one engine's processes",
    "runtime/operator_requests.py Stopper.on_signals: for received": "as long as the run: signals may come at any time",
    "runtime/perform.py Performer._later.work: perform": ACTION,
    "runtime/run.py Run.serve: with wired.engines": "its end has a limit (`Engines.__aexit__`)",
    "runtime/snapshots.py TrainerOutput.resume_point: to_thread.run_sync": ACTION,
    "runtime/snapshots.py TrainerOutput.adopt: to_thread.run_sync": ACTION,
    "runtime/snapshots.py TrainerOutput.drop: to_thread.run_sync": ACTION,
    "runtime/snapshots.py TrainerOutput.record: to_thread.run_sync": ACTION,
    "runtime/watch/silence.py TrainerSilence.run: to_thread.run_sync": "one pass over /proc of a trainer's processes",
}


def coroutines() -> set[str]:
    trees = (ast.parse(path.read_text()) for path in OURS)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}


def called(node: ast.expr) -> list[ast.expr]:
    """What is awaited, without its arguments; both sides of a choice."""
    if isinstance(node, ast.IfExp):
        return called(node.body) + called(node.orelse)
    return [node.func if isinstance(node, ast.Call) else node]


def has_deadline(node: ast.With | ast.AsyncWith) -> bool:
    calls = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(ast.unparse(call).rpartition(".")[2] in DEADLINES for call in calls)


def waits(node: ast.AST, where: str = "", limited: bool = False) -> Iterator[str]:
    """Each await outside of any deadline of its function, as "function: what is awaited"."""
    for child in ast.iter_child_nodes(node):
        inside, under = where, limited
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                inside, under = f"{where}.{name}".lstrip("."), False
            case ast.With() | ast.AsyncWith() if has_deadline(child):
                under = True
            case _:
                pass
        match child:
            case ast.Await(value=value):
                abandoned = "abandon_on_cancel=True" in ast.unparse(value)
                for what in map(ast.unparse, called(value)):
                    if not limited or (what == "to_thread.run_sync" and not abandoned):
                        yield f"{where}: {what}"
            case ast.AsyncWith(items=items) if not under:
                yield from (f"{where}: with {ast.unparse(what)}" for item in items for what in called(item.context_expr))
            case ast.AsyncFor(iter=what) if not under:
                yield f"{where}: for {ast.unparse(what)}"
            case _:
                pass
        yield from waits(child, inside, under)


def test_every_await_has_a_limit() -> None:
    ours = coroutines()
    found = {
        f"{path.relative_to(CHECKOUT / 'supervisor')} {wait}"
        for path in WATCHED
        for wait in waits(ast.parse(path.read_text()))
        if (what := wait.partition(": ")[2]) not in LIMITED_BY_THEMSELVES and what.rpartition(".")[2] not in ours
    }
    assert not found - set(LIMITED_ELSEWHERE), "no deadline around it, and nothing here says what limits it"
    assert not set(LIMITED_ELSEWHERE) - found, "listed, and not there any more"


def test_the_list_sees_what_it_should() -> None:
    program = """
async def f(self):
    await anyio.Event().wait()
    with anyio.move_on_after(1):
        await self.x.wait()
        await to_thread.run_sync(g)
        await to_thread.run_sync(g, abandon_on_cancel=True)
        async with self.lock: pass
    async with self.lock: pass
    async for word in words: pass
    await (a.b() if c else d.e())
"""
    assert list(waits(ast.parse(program))) == [
        "f: anyio.Event().wait",
        "f: to_thread.run_sync",
        "f: with self.lock",
        "f: for words",
        "f: a.b",
        "f: d.e",
    ]
