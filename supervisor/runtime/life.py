"""Groups begin, are watched, and end: the same for engines, trainers and gateways."""

import os
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio import to_thread

from engines.ids import EngineId, GroupId, Incarnation
from supervisor.runtime.crash import CrashClass, exit_class
from supervisor.runtime.ports import holder
from supervisor.runtime.processes import Command, Group, Member
from supervisor.runtime.site import Living, Site
from supervisor.scheduler.actions import StopGroup
from supervisor.scheduler.events import GroupGone, MemberExited

PORT_POLL_S = 0.02
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
        with anyio.CancelScope() as scope:
            self._starting[group] = (scope, done)
            try:
                members = await self._site.processes.spawn(commands, tag=tag, record=self._site.journal.spawned)
                self._site.living[group] = Living(members, incarnation, tag)
                for member in members.members:
                    self._site.spawn_task(self._watch, group, incarnation, member, name=f"watch {group}.{member.index}")
                await ready(members)
                return members
            finally:
                del self._starting[group]
                done.set()
        return None

    async def _watch(self, group: GroupId, incarnation: Incarnation, member: Member) -> None:
        exit_ = await member.ended()
        code = exit_.status.code if exit_.status.code is not None else -exit_.status.signal if exit_.status.signal is not None else -255
        living = self._site.living.get(group)
        note = "" if code == 0 or (living is not None and living.stopping) else self._crash_note(group, incarnation, member, code)
        self._site.feed(MemberExited(group=group, incarnation=incarnation, member=member.index, code=code, note=note))

    def _crash_note(self, group: GroupId, incarnation: Incarnation, member: Member, code: int) -> str:
        """The crash record goes to the log, its class and last line into the event."""
        try:
            with open(member.command.log, "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - TAIL))
                tail = file.read()
        except OSError:
            tail = b""
        record = exit_class(tail, code if code >= 0 else None, -code if code < 0 else None)
        log = self._site.group_log(group, incarnation)
        log.error(
            "member ended", member=member.index, pid=member.pid, code=code, crash=record.crash.value, last_lines=list(record.last_lines)
        )
        last = record.last_lines[-1] if record.last_lines and record.crash is not CrashClass.KILLED else ""
        return f"{record.crash.value}{': ' + last if last else ''}"

    async def _port_held(self, engine: EngineId, limit: float) -> str:
        """Empty when every port of the engine's window can be bound again, or who holds one: something of it lives that we do not know."""
        until = anyio.current_time() + limit
        while True:
            port = self._site.ports.bindable(engine)
            if port is None or anyio.current_time() >= until:
                break
            await anyio.sleep(PORT_POLL_S)  # nothing tells when a port becomes free
        return "" if port is None else f"port {port} is still held by {await to_thread.run_sync(holder, port)}"

    async def watch_tree(self, group: GroupId, incarnation: Incarnation) -> None:
        """After its members are ready: the end of any other process that the group consists of now counts as the end of a member."""
        living = self._site.living.get(group)
        if living is None or living.incarnation != incarnation:
            return
        exit_ = await living.group.exited()
        if exit_.index is None and not living.stopping:
            note = f"pid {exit_.pid}"
            self._site.feed(MemberExited(group=group, incarnation=incarnation, member=-1, code=-255, note=note))

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
            return GroupGone(id=action.id, confirmed=False, note=f"pids {sorted(identity.pid for identity in left)} do not end")
        if isinstance(group, EngineId) and (held := await self._port_held(group, health.release_deadline_s)):
            return GroupGone(id=action.id, confirmed=False, note=held)
        if self._site.living.get(group) is living:  # else a second, harder stop of the same life has been faster
            del self._site.living[group]
            self._site.processes.discard(living.group)
            self._site.journal.gone(living.tag)
            self._released(group)
        return GroupGone(id=action.id, confirmed=True)
