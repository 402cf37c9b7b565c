"""What SGLang's engines need besides their processes: an interpreter that has SGLang, a folder of their own, and a broom afterwards."""

import os
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from engines.lifecycle import members
from engines.sglang import command as sglang
from engines.sglang.versions import Profile, UnknownVersion, profile
from supervisor.config.child_environment import choose
from supervisor.config.machine.interpreter import NotInstalled, installed_version
from supervisor.config.schema.tables import EngineTable
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.child import Command, SpawnFailed
from supervisor.host.processes.guardian import LEFT_OVER, TRACES
from supervisor.runtime.context import Site
from supervisor.runtime.endpoints import Front
from trainers.protocol.ids import EngineId, Incarnation

ASK_S: Final = 60.0
"""Seconds for an interpreter to say which SGLang it has; a cold disk is slow."""
SHM: Final = Path("/dev/shm")
FOLLOW_S: Final = 1.0
"""Between two looks at what a starting engine has open in /dev/shm."""


@dataclass(slots=True)
class _Place:
    """One incarnation's. `traces` are files in /dev/shm that its processes have open."""

    folder: Path
    profile: Profile
    traces: set[Path] = field(default_factory=set)


class Sglang:
    """For all engines of this kind."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._found: dict[str, Profile | SpawnFailed] = {}
        self._places: dict[EngineId, _Place] = {}

    async def look(self) -> None:
        """Ask every interpreter of the configuration which SGLang it has; the answer counts when an engine is prepared. Raises nothing."""
        pythons = {engine.python for engine in (pipeline.engine for pipeline in self._site.config.pipeline) if engine.kind == "sglang"}
        async with anyio.create_task_group() as tasks:
            for python in pythons - self._found.keys():
                assert python is not None, "a rule refuses it"
                tasks.start_soon(self._look, python)

    async def _look(self, python: str) -> None:
        log = self._site.log.bind(python=python)
        try:
            version = await to_thread.run_sync(_version, python, choose("engine", self._site.environ).kept, abandon_on_cancel=True)
            known, warning = profile(version)
        except (SpawnFailed, UnknownVersion) as error:
            self._found[python] = SpawnFailed(f"{python}: {error}")
            log.error("no engine can start with this interpreter", why=str(error))
            return
        self._found[python] = known
        log.info("SGLang found", version=version)
        if warning:
            log.warning(warning)

    def prepare(self, engine: EngineId, incarnation: Incarnation, front: Front) -> None:
        """Before its commands are made. Raises SpawnFailed, OSError."""
        python = self._site.pipeline(engine.pipeline).engine.python
        assert python is not None, "a rule refuses it"
        known = self._found[python]
        if isinstance(known, SpawnFailed):
            raise known
        folder = self._site.shm / ".tmp" / f"{engine.pipeline}.{engine.rank}.{incarnation}"
        if len(os.fsencode(folder)) > sglang.SOCKET_ROOM:
            raise SpawnFailed(
                f"host.shm = {self._site.config.host.shm!r} is too long: SGLang makes sockets in {folder}; name a shorter folder"
            )
        folder.mkdir(parents=True, mode=0o700)
        descriptor = os.open(folder / "settings.yaml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(sglang.settings(front.key))
        self._places[engine] = _Place(folder, known)

    def retract_flushes(self, engine: EngineId) -> bool:
        """See `engines.sglang.versions`; of an engine of another kind, what the newest SGLang does."""
        return (place := self._places.get(engine)) is None or place.profile.retract_flushes

    def has_checksums(self, engine: EngineId) -> bool:
        return (place := self._places.get(engine)) is not None and place.profile.checksum

    def command(self, engine: EngineId, incarnation: Incarnation, front: Front, member: members.Member, count: int) -> Command:
        """What one member runs. To be called between `prepare` and `gone`."""
        site = self._site
        spec = site.pipeline(engine.pipeline).engine
        bundle = site.bundle(engine)
        seen = visible([bundle[position] for position in member.gpus])
        described = self._described(
            engine, incarnation, spec, members.arguments(member, count, members.Ports(front.window.first), tp=spec.tp, ep=spec.ep)
        )
        env = {
            **sglang.environment(described, choose("engine", site.environ, spec.pass_env).kept, spec.env),
            "CUDA_VISIBLE_DEVICES": seen.env["CUDA_VISIBLE_DEVICES"],
            "TRAINSHED_GPUS": ",".join(seen.devices),
            "TRAINSHED_RUN": str(site.directory.path),
            "TRAINSHED_TAG": site.tag(engine, incarnation),
        }
        log = site.directory.log_of(engine, member.index or None)
        return Command(argv=sglang.arguments(described), env=env, cwd=site.directory.path, log=log, niceness=described.niceness)

    def _described(self, engine: EngineId, incarnation: Incarnation, spec: EngineTable, shape: list[str]) -> sglang.Spec:
        assert spec.python is not None, "a rule refuses it"
        assert spec.context is not None, "load fills it in"
        place = self._places[engine]
        return sglang.Spec(
            python=spec.python,
            model=str(self._site.model(engine.pipeline)),
            shape=shape,
            device="cuda" if self._site.bundle(engine)[0].uuid is not None else "cpu",
            gpus=spec.tp,
            slots=spec.slots,
            context=spec.context,
            kv_tokens=spec.kv_tokens or spec.slots * spec.context,
            seed=sglang.seed(self._site.pipeline(engine.pipeline).seed, engine.rank, incarnation),
            folder=str(place.folder),
            profile=place.profile,
            cpus=sorted(os.sched_getaffinity(0)),
            args=spec.args,
        )

    async def trace(self, engine: EngineId, pids: Iterable[int]) -> None:
        """Note what these living processes have open in /dev/shm, so that it can be removed when they are gone.

        In a file, too: should the supervisor be killed, its guardian (or, after both, the next start) reads it.
        """
        if (place := self._places.get(engine)) is None:
            return
        found = await to_thread.run_sync(open_in_shm, frozenset(pids), abandon_on_cancel=True)
        if not found <= place.traces:
            place.traces |= found
            try:
                _note(place).write_text("".join(f"{path.name}\n" for path in sorted(place.traces)), "utf-8")
            except OSError as error:  # it costs a file in /dev/shm if we are killed, and nothing else
                self._site.log.warning("cannot note what an engine has open in /dev/shm", error=str(error))

    async def follow(self, engine: EngineId, pids: Callable[[], Awaitable[Iterable[int]]]) -> None:
        """`trace` while it starts, until cancelled: one that is killed before it is ready leaves as much."""
        while engine in self._places:
            await anyio.sleep(FOLLOW_S)
            await self.trace(engine, await pids())

    def gone(self, engine: EngineId) -> None:
        """Nothing of this incarnation lives: what it has left goes, too."""
        if (place := self._places.pop(engine, None)) is None:
            return
        shutil.rmtree(place.folder, ignore_errors=True)
        for trace in place.traces:
            trace.unlink(missing_ok=True)
        _note(place).unlink(missing_ok=True)


def _note(place: _Place) -> Path:
    """Beside its TMPDIR, not in it."""
    return place.folder.with_name(place.folder.name + TRACES)


def _version(python: str, environ: dict[str, str]) -> str:
    """Which SGLang an interpreter has. Raises SpawnFailed."""
    try:
        return installed_version(python, "sglang", "SGLang", environ, ASK_S)
    except NotInstalled as error:
        raise SpawnFailed(f"{error}; name the interpreter of an environment that has it") from error


def open_in_shm(pids: frozenset[int]) -> set[Path]:
    """Files of /dev/shm that these processes have mapped, by name. Compared by inode: the C library maps a semaphore before it names it."""
    mapped: set[int] = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
                mapped |= {int(line.split(maxsplit=5)[4]) for line in maps if " /dev/shm/" in line}
        except OSError:  # it has ended
            continue
    with os.scandir(SHM) as entries:
        return {Path(entry.path) for entry in entries if entry.name.startswith(LEFT_OVER) and entry.inode() in mapped}
