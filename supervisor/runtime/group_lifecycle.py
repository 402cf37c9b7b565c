"""Groups begin, are watched, and end in the same way, whether they are engines, trainers or gateways.

`Groups` is the registry of those that live; only the `GroupLifecycle` writes to it. What a group holds besides processes (ports, channels,
files) is registered with the lifecycle when it is acquired, and given back when nothing of the group lives.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from supervisor.attempt.journal import Journal
from supervisor.config.schema.tables import HealthTable
from supervisor.host.foreign import all_foreign_to
from supervisor.host.ports import WINDOW, Ports, Window, holder, listeners
from supervisor.host.processes.group import Command, Group, Member, Processes, Status, census
from supervisor.host.processes.proc import table
from supervisor.observe.crash_report import CrashClass, crash_record
from supervisor.runtime.driver import Loop
from supervisor.scheduler.actions import StopGroup
from supervisor.scheduler.events import UNKNOWN_CODE, GroupGone, MemberExited
from trainers.protocol.child_env import TAG
from trainers.protocol.ids import EngineId, GroupId, Incarnation

PORT_POLL_S = 0.02
FIRST_LOOK_S, LONGEST_WAIT_S = 0.1, 2.0
"""Seconds from one look at who holds a port to the next, the first and the longest: each scans all descriptors of the box."""


@dataclass(slots=True)
class LiveGroup:
    """One incarnation of a group that has processes. `stopping`: its end has been asked for, and is no failure."""

    id: GroupId
    incarnation: Incarnation
    group: Group
    stopping: bool = False


class Groups:
    """The groups that live, by id. Whatever is spawned here is in the journal before it runs, until nothing of it lives."""

    def __init__(self, processes: Processes, journal: Journal) -> None:
        self._processes = processes
        self._journal = journal
        self._live: dict[GroupId, LiveGroup] = {}

    def __iter__(self) -> Iterator[LiveGroup]:
        return iter(self._live.values())

    def get(self, id: GroupId) -> LiveGroup | None:
        return self._live.get(id)

    async def pids(self, but: LiveGroup | None = None) -> Mapping[GroupId, frozenset[int]]:
        """Returns every living process of each group (`but` one), from one look around."""
        return await census({live.id: live.group for live in self if live is not but})

    async def spawn(self, commands: Sequence[Command]) -> Group:
        """Starts processes that belong together, all or none. Raises SpawnFailed."""
        return await self._processes.spawn(commands, tag=commands[0].env[TAG], record=self._journal.spawned)

    def discard(self, group: Group) -> None:
        """Forgets processes that are gone."""
        self._processes.discard(group)
        self._journal.gone(group.tag)

    def add(self, live: LiveGroup) -> None:
        self._live[live.id] = live

    def remove(self, live: LiveGroup) -> bool:
        """Takes a group that has ended out of the registry; False when that has been done."""
        if self._live.get(live.id) is not live:
            return False
        del self._live[live.id]
        self.discard(live.group)
        return True


class GroupLifecycle:
    """Starts and ends groups. A start that is under way when its group is to be stopped is interrupted first."""

    def __init__(self, groups: Groups, loop: Loop, ports: Ports, health: HealthTable, hide: Callable[[str], str]) -> None:
        """`hide` takes secrets out of what a child has written, before it becomes part of an event."""
        self._groups = groups
        self._loop = loop
        self._ports = ports
        self._health = health
        self._hide = hide
        self._starting: dict[GroupId, tuple[anyio.CancelScope, anyio.Event]] = {}
        self._held: dict[GroupId, contextlib.AsyncExitStack] = {}

    # -- what a group holds besides processes

    def reserve(self, group: GroupId, count: int = WINDOW) -> Window:
        """Reserves ports in a row for the next life of the group, until it has ended. Raises NoPortFree."""
        window = self._ports.reserve(group, count)
        self.when_gone(group, lambda: self._ports.release(group))
        return window

    def when_gone(self, group: GroupId, give_back: Callable[[], None]) -> None:
        """Registers what is done once nothing of the group lives, also when its life never began; what came last is done first."""
        self._held.setdefault(group, contextlib.AsyncExitStack()).callback(give_back)

    def remove_when_gone(self, group: GroupId, remove: Callable[[], None]) -> None:
        """Registers the removal of files that the group leaves: as many as it likes, so this is done beside the loop."""

        async def removed() -> None:
            try:
                await to_thread.run_sync(remove)
            except (OSError, ValueError) as error:
                self._loop.log.warning("cannot remove what a group has left", group=str(group), error=str(error))

        self._held.setdefault(group, contextlib.AsyncExitStack()).push_async_callback(removed)

    async def _give_back(self, group: GroupId) -> None:
        if (held := self._held.pop(group, None)) is not None:
            await held.aclose()

    # -- its life

    def live(self, group: GroupId) -> LiveGroup | None:
        return self._groups.get(group)

    async def begin(
        self, group: GroupId, incarnation: Incarnation, commands: Sequence[Command], ready: Callable[[Group], Awaitable[None]]
    ) -> Group | None:
        """Spawn the members and wait until `ready`; every member is watched from the first moment on.

        None when the group was stopped meanwhile. Raises SpawnFailed, and what `ready` raises; the members then still live, and the
        scheduler stops the group as it does for any failure.
        """
        done = anyio.Event()
        written = [_size(command.log) for command in commands]  # by its earlier lives
        with anyio.CancelScope() as scope:
            self._starting[group] = (scope, done)
            try:
                members = await self._groups.spawn(commands)
                live = LiveGroup(group, incarnation, members)
                self._groups.add(live)
                for member, before in zip(members.members, written, strict=True):
                    self._loop.spawn_task(self._watch, live, member, before, name=f"watch {group}.{member.index}")
                await ready(members)
                return members
            finally:
                del self._starting[group]
                done.set()
        return None

    async def _watch(self, live: LiveGroup, member: Member, before: int) -> None:
        exit_ = await member.ended()
        status = exit_.status
        code = status.returncode if status.returncode is not None else UNKNOWN_CODE
        note, error = ("", "") if code == 0 or live.stopping else self._crash_note(live, member, status, before)
        self._loop.feed(MemberExited(group=live.id, incarnation=live.incarnation, member=member.index, code=code, note=note, error=error))

    def _crash_note(self, live: LiveGroup, member: Member, status: Status, before: int) -> tuple[str, str]:
        """Writes the crash record to the log, and returns its class and last line, and the error of the script's own, if one ended it.

        `before` bytes of the member's log are of earlier lives.
        """
        record = crash_record(member.command.log, status, self._hide, before)
        self._loop.log_for(live.id, live.incarnation).error(
            "member ended",
            member=member.index,
            pid=member.pid,
            code=status.returncode,
            crash=record.crash.value,
            last_lines=list(record.last_lines),
        )
        last = record.said if record.crash is not CrashClass.KILLED else ""
        return self._hide(f"{record.crash.value}{': ' + last if last else ''}"), self._hide(record.error)

    def watch_tree(self, group: GroupId, incarnation: Incarnation) -> None:
        """Watch the other processes of a group that is ready: from now on the exit of any of them counts as the exit of a member."""
        live = self._groups.get(group)
        if live is not None and live.incarnation == incarnation:
            self._loop.spawn_task(self._watch_tree, live, name=f"watch the tree of {group}")

    async def _watch_tree(self, live: LiveGroup) -> None:
        exit_ = await live.group.exited()
        if exit_.index is None and not live.stopping:
            note = f"pid {exit_.pid}"
            self._loop.feed(MemberExited(group=live.id, incarnation=live.incarnation, member=-1, code=UNKNOWN_CODE, note=note))

    # -- its end

    async def end(self, action: StopGroup) -> GroupGone:
        """End every process of that incarnation. The answer is not confirmed when one does not end, or when something holds its ports."""
        group = action.group
        if (starting := self._starting.get(group)) is not None:
            scope, done = starting
            scope.cancel()
            await done.wait()
        live = self._groups.get(group)
        if live is None:
            await self._give_back(group)  # what was kept for a life that never came to be
        if live is None or live.incarnation != action.incarnation:
            return GroupGone(id=action.id, confirmed=True)
        live.stopping = True
        limit = self._health.release_deadline_s
        grace = self._health.grace_s if action.grace is None else action.grace
        survivors = await (live.group.kill(limit) if action.kill else live.group.stop(grace, limit))
        if survivors:
            pids = tuple(sorted(identity.pid for identity in survivors))
            return GroupGone(id=action.id, confirmed=False, note=f"pids {list(pids)} do not end", pids=pids)
        if isinstance(group, EngineId) and (held := await self._port_held(live, limit)):
            return GroupGone(id=action.id, confirmed=False, note=held)
        if self._groups.remove(live):  # else a second, harder stop of the same life has been faster
            await self._give_back(group)
        return GroupGone(id=action.id, confirmed=True)

    async def _port_held(self, live: LiveGroup, limit: float) -> str:
        """Returns who holds a port of the group's window after `limit` seconds: something of the group lives that we do not know.

        Empty when every port can be bound again, or is held by a process that is certainly foreign: the next life takes another window.
        """
        until = anyio.current_time() + limit
        look, wait = 0.0, FIRST_LOOK_S
        while blocked := self._ports.blocked(live.id):
            now = anyio.current_time()
            if now >= min(look, until):
                port = await self._not_foreign(live, blocked)
                if port is None:
                    await self._log_foreign(live, blocked)
                    break
                if now >= until:
                    return f"port {port} is still held by {await to_thread.run_sync(holder, port, abandon_on_cancel=True)}"
                look, wait = now + wait, min(2 * wait, LONGEST_WAIT_S)
            await anyio.sleep(PORT_POLL_S)  # nothing tells when a port becomes free
        return ""

    async def _not_foreign(self, live: LiveGroup, ports: Sequence[int]) -> int | None:
        """Returns the first port that may be held by something of that group."""
        others = await self._groups.pids(but=live)
        pids = {pid for some in others.values() for pid in some}
        of = live.group.lineage

        def look() -> int | None:
            processes = table()
            return next((port for port in ports if not all_foreign_to(of, listeners(port), processes, pids)), None)

        return await to_thread.run_sync(look, abandon_on_cancel=True)

    async def _log_foreign(self, live: LiveGroup, ports: Sequence[int]) -> None:
        who = await to_thread.run_sync(lambda: sorted({holder(port) for port in ports}), abandon_on_cancel=True)
        log = self._loop.log_for(live.id, live.incarnation)
        log.warning("ports of its window are a stranger's; its next life takes other ones", ports=list(ports), holders=who)


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
