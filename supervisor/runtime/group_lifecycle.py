"""Groups begin, are watched, and end: the same for engines, trainers and gateways."""

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from supervisor.host.foreign import all_foreign_to
from supervisor.host.ports import holder, listeners
from supervisor.host.processes.group import Command, Group, Member, Status, census
from supervisor.host.processes.proc import table
from supervisor.observe.crash_report import CrashClass, exit_class
from supervisor.runtime.context import Living, Site
from supervisor.scheduler.actions import StopGroup
from supervisor.scheduler.events import UNKNOWN_CODE, GroupGone, MemberExited
from trainers.protocol.ids import EngineId, GroupId, Incarnation

PORT_POLL_S = 0.02
FIRST_LOOK_S, LONGEST_WAIT_S = 0.1, 2.0
"""From one look at who holds a port to the next: each is a scan of all descriptors of the box."""
TAIL = 32 << 10
"""Bytes of a child's log that its crash record is read from."""


class Life:
    """Starts and ends groups. A start that is under way when its group is to be stopped is interrupted first."""

    def __init__(self, site: Site, released: Callable[[GroupId], None]) -> None:
        """`released` is told when a group is gone, so that what was kept for it (ports, channels) can go."""
        self._site = site
        self._released = released
        self._starting: dict[GroupId, tuple[anyio.CancelScope, anyio.Event]] = {}

    async def begin(
        self, group: GroupId, incarnation: Incarnation, commands: Sequence[Command], ready: Callable[[Group], Awaitable[None]]
    ) -> Group | None:
        """Spawn the members and wait until `ready`; every member is watched from the first moment on.

        None when the group was stopped meanwhile. Raises SpawnFailed, and what `ready` raises; the members then still live, and the
        scheduler stops the group as it does for any failure.
        """
        tag = self._site.tag(group, incarnation)
        done = anyio.Event()
        written = [_size(command.log) for command in commands]  # by its earlier lives
        with anyio.CancelScope() as scope:
            self._starting[group] = (scope, done)
            try:
                members = await self._site.processes.spawn(commands, tag=tag, record=self._site.journal.spawned)
                self._site.living[group] = Living(members, incarnation, tag)
                for member, before in zip(members.members, written, strict=True):
                    self._site.spawn_task(self._watch, group, incarnation, member, before, name=f"watch {group}.{member.index}")
                await ready(members)
                return members
            finally:
                del self._starting[group]
                done.set()
        return None

    async def _watch(self, group: GroupId, incarnation: Incarnation, member: Member, before: int) -> None:
        exit_ = await member.ended()
        status = exit_.status
        code = status.returncode if status.returncode is not None else UNKNOWN_CODE
        living = self._site.living.get(group)
        note = "" if code == 0 or (living is not None and living.stopping) else self._crash_note(group, incarnation, member, status, before)
        self._site.feed(MemberExited(group=group, incarnation=incarnation, member=member.index, code=code, note=note))

    def _crash_note(self, group: GroupId, incarnation: Incarnation, member: Member, status: Status, before: int) -> str:
        """The crash record goes to the log, its class and last line into the event. `before` bytes of its log are of earlier lives."""
        try:
            with open(member.command.log, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - TAIL, before if before <= end else 0))  # somebody may have emptied it
                tail = file.read()
        except OSError:
            tail = b""
        record = exit_class(tail, status)
        log = self._site.group_log(group, incarnation)
        log.error(
            "member ended",
            member=member.index,
            pid=member.pid,
            code=status.returncode,
            crash=record.crash.value,
            last_lines=list(record.last_lines),
        )
        last = record.last_lines[-1] if record.last_lines and record.crash is not CrashClass.KILLED else ""
        return f"{record.crash.value}{': ' + last if last else ''}"

    async def _port_held(self, engine: EngineId, living: Living, limit: float) -> str:
        """Empty when every port of the engine's window can be bound again, or is a stranger's: the next life takes another window.

        Else who holds one: something of it lives that we do not know.
        """
        until = anyio.current_time() + limit
        look, wait = 0.0, FIRST_LOOK_S
        while blocked := self._site.ports.blocked(engine):
            now = anyio.current_time()
            if now >= min(look, until):
                port = await self._not_a_strangers(living, blocked)
                if port is None:
                    await self._leave_to_strangers(engine, living, blocked)
                    break
                if now >= until:
                    return f"port {port} is still held by {await to_thread.run_sync(holder, port)}"
                look, wait = now + wait, min(2 * wait, LONGEST_WAIT_S)
            await anyio.sleep(PORT_POLL_S)  # nothing tells when a port becomes free
        return ""

    async def _not_a_strangers(self, living: Living, ports: Sequence[int]) -> int | None:
        """The first that may be held by something of that life."""
        others = await census({group: other.group for group, other in self._site.living.items() if other is not living})
        pids = {pid for some in others.values() for pid in some}
        of = living.group.lineage

        def look() -> int | None:
            processes = table()
            return next((port for port in ports if not all_foreign_to(of, listeners(port), processes, pids)), None)

        return await to_thread.run_sync(look)

    async def _leave_to_strangers(self, engine: EngineId, living: Living, ports: Sequence[int]) -> None:
        who = await to_thread.run_sync(lambda: sorted({holder(port) for port in ports}))
        log = self._site.group_log(engine, living.incarnation)
        log.warning("ports of its window are a stranger's; its next life takes other ones", ports=list(ports), holders=who)

    async def watch_tree(self, group: GroupId, incarnation: Incarnation) -> None:
        """After its members are ready: the end of any other process that the group consists of now counts as the end of a member."""
        living = self._site.living.get(group)
        if living is None or living.incarnation != incarnation:
            return
        exit_ = await living.group.exited()
        if exit_.index is None and not living.stopping:
            note = f"pid {exit_.pid}"
            self._site.feed(MemberExited(group=group, incarnation=incarnation, member=-1, code=UNKNOWN_CODE, note=note))

    async def end(self, action: StopGroup) -> GroupGone:
        """Every pid of that incarnation, or the word that one could not be ended."""
        group = action.group
        if (starting := self._starting.get(group)) is not None:
            scope, done = starting
            scope.cancel()
            await done.wait()
        living = self._site.living.get(group)
        if living is None:
            self._released(group)  # what was kept for a life that never came to be
        if living is None or living.incarnation != action.incarnation:
            return GroupGone(id=action.id, confirmed=True)
        living.stopping = True
        health = self._site.config.health
        left = await (
            living.group.kill(health.release_deadline_s) if action.kill else living.group.stop(health.grace_s, health.release_deadline_s)
        )
        if left:
            pids = tuple(sorted(identity.pid for identity in left))
            return GroupGone(id=action.id, confirmed=False, note=f"pids {list(pids)} do not end", pids=pids)
        if isinstance(group, EngineId) and (held := await self._port_held(group, living, health.release_deadline_s)):
            return GroupGone(id=action.id, confirmed=False, note=held)
        if self._site.living.get(group) is living:  # else a second, harder stop of the same life has been faster
            del self._site.living[group]
            self._site.processes.discard(living.group)
            self._site.journal.gone(living.tag)
            self._released(group)
        return GroupGone(id=action.id, confirmed=True)


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0
