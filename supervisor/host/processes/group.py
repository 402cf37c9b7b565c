"""A group of processes is started together, watched by pidfd, and ended together with everything that its processes started.

One owner may `stop` or `kill` a group at a time; anybody may wait for it. Every signal goes through a pidfd whose process has
been compared with its start time, never to a bare number.
"""

import contextlib
import functools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import anyio
from anyio import to_thread

from supervisor.host.processes.child import Child, Command, SpawnFailed, Status, reap, release, start_plain, wait_exit
from supervisor.host.processes.pidfd import kill_all, send
from supervisor.host.processes.pool import PrewarmedPool
from supervisor.host.processes.proc import Identity, Lineage, command_of, lineage, read_stat, table, tag_of
from trainers.protocol.child_env import TAG

__all__ = ["Command", "Group", "Member", "MemberExit", "Processes", "SpawnFailed", "Status", "census"]

Key = TypeVar("Key", bound=Hashable)
SPAWN_SECONDS: Final = 60.0
KILL_SECONDS: Final = 5.0
ORPHAN_SECONDS: Final = 2.0
PASSING: Final = (b"/_inductor/compile_worker", b"multiprocessing.resource_tracker")
"""Parts of command lines: torch's compilers end after a minute without work, and a tracker of resources with what it tracks."""


@dataclass(frozen=True)
class MemberExit:
    """A member of a group has ended. `index` is None for another process of its tree, whose code nobody can know."""

    index: int | None
    pid: int
    status: Status

    def __str__(self) -> str:
        who = f"process {self.pid} of its tree" if self.index is None else f"member {self.index} (pid {self.pid})"
        return f"{who}: {self.status}"


@dataclass
class Member:
    index: int
    command: Command
    child: Child
    exit: MemberExit | None = None
    _collecting: anyio.Lock = field(default_factory=anyio.Lock, repr=False)

    @property
    def pid(self) -> int:
        return self.child.identity.pid

    @property
    def identity(self) -> Identity:
        return self.child.identity

    async def ended(self) -> MemberExit:
        """Wait for the member's end and collect it."""
        if self.exit is None:
            await wait_exit(self.child.pidfd)
            async with self._collecting:
                if self.exit is None:
                    self.exit = MemberExit(self.index, self.pid, await self.child.collect())
        return self.exit


class Group:
    """A group is the processes of one incarnation of one engine, trainer or gateway."""

    def __init__(self, tag: str, members: tuple[Member, ...], reap_orphans: Callable[[], None]) -> None:
        self.tag = tag
        self.members = members
        self._reap_orphans = reap_orphans
        self._seen: frozenset[Identity] = frozenset()
        self._tree: dict[Identity, int] = {}
        self._tree_changed = anyio.Event()
        self._confirmed_ended = False

    async def exited(self) -> MemberExit:
        """Return the first exit of a member, or of a process under `watch_tree`; at once when there has been one."""
        exits: list[MemberExit] = []
        while not exits:
            changed = self._tree_changed
            async with anyio.create_task_group() as tasks:
                waiting = tasks.cancel_scope
                for member in self.members:
                    tasks.start_soon(_member_ends, member, exits, waiting)
                for identity, pidfd in self._tree.items():
                    tasks.start_soon(_other_ends, identity.pid, pidfd, exits, waiting)
                await changed.wait()
                waiting.cancel()
        return min(exits, key=lambda exit_: (exit_.index is None, exit_.index or 0))

    async def ended(self) -> tuple[MemberExit, ...]:
        """Wait for the end of all members."""
        return tuple([await member.ended() for member in self.members])

    async def watch_tree(self) -> frozenset[int]:
        """Count the end of any process that the group consists of now as an exit, from here on. Return their pids.

        Processes that leave by themselves when they have nothing to do (`PASSING`) are not counted.
        """
        members = {member.identity for member in self.members}
        for identity in await self._scan() - members - self._tree.keys():
            if any(name in command_of(identity.pid) for name in PASSING):
                continue
            with contextlib.suppress(ProcessLookupError):
                self._tree[identity] = os.pidfd_open(identity.pid)
        self._tree_changed.set()
        self._tree_changed = anyio.Event()
        return frozenset(identity.pid for identity in members | self._tree.keys())

    async def pids(self) -> frozenset[int]:
        """Return every living process of this incarnation, as of now."""
        return frozenset(identity.pid for identity in await self._scan())

    async def stop(self, grace_s: float, kill_s: float = KILL_SECONDS) -> frozenset[Identity]:
        """Send TERM and CONT to the members, and KILL to everything that lives after `grace_s`. Return the survivors: normally none."""
        with anyio.move_on_after(grace_s, shield=True):
            for member in self.members:
                if member.exit is None:
                    send(member.identity, signal.SIGTERM, signal.SIGCONT)  # a stopped process takes no TERM before CONT
            await self.ended()
        return await self.kill(kill_s)

    async def kill(self, deadline_s: float = KILL_SECONDS) -> frozenset[Identity]:
        """KILL every member's whole session, all descendants and bearers of our tag, until a pass over /proc finds none.

        Return the survivors of `deadline_s`: a process inside a driver call outlasts even this. None means that every pid of this
        incarnation has ended (`confirmed_ended`). Cancellation does not interrupt it.
        """
        alive: frozenset[Identity] = frozenset()
        with anyio.move_on_after(deadline_s, shield=True):
            while alive := await self._scan():
                await kill_all(alive)
            await self.ended()
            self._confirmed_ended = True
            self._forget_tree()
        self._reap_orphans()
        return alive

    @property
    def confirmed_ended(self) -> bool:
        """Whether `kill` or `stop` has confirmed that nothing of this incarnation lives."""
        return self._confirmed_ended

    async def _scan(self) -> frozenset[Identity]:
        if self._confirmed_ended:
            return frozenset()
        of = self.lineage
        return self.saw(await to_thread.run_sync(lambda: lineage(of, table())))

    @property
    def lineage(self) -> Lineage:
        return Lineage(frozenset(member.identity for member in self.members), self.tag, self._seen)

    def saw(self, alive: frozenset[Identity]) -> frozenset[Identity]:
        """Remember who was found, so that a process that later leaves the tree is not lost."""
        self._seen |= alive
        return alive

    def _forget_tree(self) -> None:
        for pidfd in self._tree.values():
            os.close(pidfd)
        self._tree.clear()

    def close(self) -> None:
        """Give up our descriptors of a group that has ended."""
        self._forget_tree()
        for member in self.members:
            member.child.close()


async def _member_ends(member: Member, exits: list[MemberExit], waiting: anyio.CancelScope) -> None:
    exits.append(await member.ended())
    waiting.cancel()


async def _other_ends(pid: int, pidfd: int, exits: list[MemberExit], waiting: anyio.CancelScope) -> None:
    await wait_exit(pidfd)
    exits.append(MemberExit(None, pid, Status()))
    waiting.cancel()


async def census(groups: Mapping[Key, Group]) -> dict[Key, frozenset[int]]:
    """Return every living process of each group that is not known to have ended, from one pass over /proc."""
    living = {key: group for key, group in groups.items() if not group.confirmed_ended}
    of = {key: group.lineage for key, group in living.items()}

    def look() -> dict[Key, frozenset[Identity]]:
        processes, tag = table(), functools.cache(tag_of)
        return {key: lineage(one, processes, tag) for key, one in of.items()}

    found = await to_thread.run_sync(look)
    return {key: frozenset(identity.pid for identity in group.saw(found[key])) for key, group in living.items()}


Record = Callable[[str, Sequence[Child]], Awaitable[None]]
"""Writes (tag, started and held children) down; they are released when it returns."""


class Processes:
    """This object starts groups, knows which children are ours, and collects orphans that the kernel hands us.

    Use as a context manager: at its end every group is killed and the prewarmed pool ends.
    """

    def __init__(self, prewarm: PrewarmedPool | None = None) -> None:
        self._prewarm = prewarm
        self._groups: list[Group] = []
        self._starting: set[int] = set()

    async def spawn(
        self, commands: Sequence[Command], *, tag: str, record: Record | None = None, deadline_s: float = SPAWN_SECONDS
    ) -> Group:
        """Start one group: all members or none. `tag` must be in each command's environment as `TRAINSHED_TAG`.

        Raises SpawnFailed (then nothing of it remains). Once begun it is not interrupted by cancellation: the group is then
        known here and ends with this object at the latest.
        """
        assert all(command.env.get(TAG) == tag for command in commands), "the tag is how lost descendants are found"
        children: list[Child] = []
        try:
            with anyio.fail_after(deadline_s, shield=True):
                for command in commands:
                    children.append(await self._start(command))
                    self._starting.add(children[-1].identity.pid)
                if record is not None:
                    await record(tag, children)
                for child, command in zip(children, commands, strict=True):
                    await release(child, command)
        except BaseException as error:
            await self._undo(tag, children, commands)
            if isinstance(error, TimeoutError):
                raise SpawnFailed(f"cannot start {commands[0]}: not running after {deadline_s:g} s") from error
            raise
        finally:
            self._starting.difference_update(child.identity.pid for child in children)
        return self._adopt(tag, children, commands)

    async def _start(self, command: Command) -> Child:
        if self._prewarm is not None and command.module is not None:
            return await self._prewarm.start(command)
        return start_plain(command)

    def _adopt(self, tag: str, children: Sequence[Child], commands: Sequence[Command]) -> Group:
        members = tuple(Member(index, command, child) for index, (child, command) in enumerate(zip(children, commands, strict=False)))
        group = Group(tag, members, self.reap_orphans)
        self._groups.append(group)
        return group

    async def _undo(self, tag: str, children: Sequence[Child], commands: Sequence[Command]) -> None:
        if children:
            group = self._adopt(tag, children, commands)
            if not await group.kill():
                self.discard(group)

    def discard(self, group: Group) -> None:
        """Forget a group that has ended."""
        assert group.confirmed_ended, "a group is forgotten only when nothing of it lives"
        self._groups.remove(group)
        group.close()

    def ours(self) -> set[int]:
        """Return the pids whose exit codes belong to somebody here."""
        pids = {member.pid for group in self._groups for member in group.members} | self._starting
        return pids | (self._prewarm.pids() if self._prewarm is not None else set())

    def reap_orphans(self) -> None:
        """Collect dead children that came to us as their nearest subreaper, one by one, never one of `ours`.

        Orphans are known by their session: each member of a group has its own, which is never the supervisor's.
        """
        ours, session = self.ours(), os.getsid(0)
        for pid in below_us():
            stat = read_stat(pid)
            if stat is not None and pid not in ours and stat.state == "Z" and stat.session != session:
                reap(os.P_PID, pid)

    async def reap_forever(self) -> None:
        """Collect orphans now and then, for as long as the supervisor runs."""
        while True:
            self.reap_orphans()
            await anyio.sleep(ORPHAN_SECONDS)

    async def watch_pool(self) -> None:
        """Replace a pool whose server hangs, for as long as the supervisor runs."""
        if self._prewarm is not None:
            await self._prewarm.watch()

    async def end(self) -> frozenset[Identity]:
        """Kill every group and end the pool. Return the survivors."""
        survivors: set[Identity] = set()

        async def kill(group: Group) -> None:
            survivors.update(await group.kill())
            if group.confirmed_ended:
                self.discard(group)

        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for group in list(self._groups):
                    tasks.start_soon(kill, group)
            if self._prewarm is not None:
                await self._prewarm.end()
        self.reap_orphans()
        return frozenset(survivors)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Processes"]:
        """Begin to warm the pool in the background; at the end, end everything."""
        try:
            if self._prewarm is not None:
                await self._prewarm.begin()
            yield self
        finally:
            await self.end()


def below_us() -> list[int]:
    """Return the pids of our direct children."""
    children: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
            children += [int(pid) for pid in file.read().split()]
    return children
