"""SGLang runs with an interpreter that has it, in a folder of each incarnation; what it leaves in /dev/shm is removed afterwards.

Which version an engine reports is a label that we gave it ourselves; only bytes prove that a load was complete. Engines of one pipeline
have one shape, so with the same weights they agree.
"""

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from engines.control import EngineControl, EngineError, EnginePoisoned
from engines.lifecycle import members
from engines.sglang import command as sglang
from engines.sglang.versions import Profile, UnknownVersion, profile
from supervisor.config.machine.interpreter import CudaParts, NotInstalled, cuda_parts, installed_version
from supervisor.config.machine.model_files import model_size
from supervisor.host.atomic_file import write_atomically
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.child import Command, SpawnFailed
from supervisor.host.processes.guardian import LEFT_OVER, TRACES
from supervisor.observe.event_log import log_for
from supervisor.runtime.kinds.engine_kind import EngineLife, EngineStart, Log
from supervisor.runtime.run_facts import RunFacts
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version
from trainers.remove_tree import remove_what_can_be

NAME: Final = "sglang"
ASK_S: Final = 60.0
"""Seconds for an interpreter to say which SGLang it has; a cold disk is slow."""
SHM: Final = Path("/dev/shm")
FOLLOW_S: Final = 1.0
"""Between two looks at what a starting engine has open in /dev/shm."""
POOL_SLACK: Final = 0.02
"""A KV pool is made of pages: it may be smaller than what was asked for by less than this share."""
RESIDUAL_BYTES: Final = 4 << 30
"""What sleepers may have of each GPU when an engine starts, where its share of the memory is worked out."""
VERIFY_EVERY: Final = 8
"""Of an incarnation's loads one in so many is verified, beside its first: a checksum reads all weights once."""


class Sglang:
    """Starts engines of SGLang (`engines.sglang`). Each interpreter of the configuration is asked once which SGLang it has."""

    def __init__(self, facts: RunFacts, log: Log) -> None:
        self._facts = facts
        self._log = log
        self._found: dict[str, _Found | SpawnFailed] = {}
        self._checksums = Checksums()

    async def look(self) -> None:
        """Asks every interpreter of the configuration; the answer counts when an engine is prepared."""
        pythons = {table.engine.python for _, table in self._facts.pipelines if table.engine.kind == NAME}
        async with anyio.create_task_group() as tasks:
            for python in pythons - self._found.keys():
                assert python is not None, "a rule refuses it"
                tasks.start_soon(self._ask, python)

    async def _ask(self, python: str) -> None:
        log = self._log.bind(python=python)
        environ = self._facts.environment.inherited("engine").kept
        try:
            version = await to_thread.run_sync(_version, python, environ, abandon_on_cancel=True)
            known, warning = profile(version)
        except (SpawnFailed, UnknownVersion) as error:
            self._found[python] = SpawnFailed(f"{python}: {error}")
            log.error("no engine can start with this interpreter", why=str(error))
            return
        parts = None
        if any(gpu.uuid is not None for gpu in self._facts.pipelines.gpus):
            parts = await to_thread.run_sync(cuda_parts, python, environ, ASK_S, abandon_on_cancel=True)
            if parts is None:
                log.warning("the interpreter does not say where CUDA's libraries are: LD_LIBRARY_PATH is as it was inherited")
        self._found[python] = _Found(known, version, parts or CudaParts())
        log.info("SGLang found", version=version, cuda=parts.major if parts is not None else None)
        if warning:
            log.warning(warning)

    def prepare(self, start: EngineStart) -> "SglangLife":
        python = start.table.python
        assert python is not None, "a rule refuses it"
        known = self._found[python]
        if isinstance(known, SpawnFailed):
            raise known
        folder = start.facts.paths.scratch(start.engine, start.incarnation)
        if len(os.fsencode(folder)) > sglang.SOCKET_ROOM:
            shm = start.facts.pipelines.config.host.shm
            raise SpawnFailed(f"host.shm = {shm!r} is too long: SGLang makes sockets in {folder}; name a shorter folder")
        folder.mkdir(parents=True, mode=0o700)
        descriptor = os.open(folder / "settings.yaml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(sglang.settings(start.endpoint.key))
        commands = _commands(start, folder, known)
        return SglangLife(commands, Traces(folder, self._log), known.profile, self._checksums, start, self._log)


@dataclass(frozen=True, slots=True)
class _Found:
    """What an interpreter has said of itself."""

    profile: Profile
    version: str
    cuda: CudaParts


class SglangLife(EngineLife):
    """One incarnation, with its traces and its checksums."""

    def __init__(
        self, commands: Sequence[Command], traces: "Traces", known: Profile, checksums: "Checksums", start: EngineStart, log: Log
    ) -> None:
        super().__init__(commands)
        self.retract_flushes = known.retract_flushes
        self._traces = traces
        self._checksums = checksums if known.checksum else None
        self._engine, self._incarnation = start.engine, start.incarnation
        self._log = log
        self._on_gpus = start.gpus[0].uuid is not None
        self._wanted = start.table.kv_tokens or start.table.slots * (start.table.context or 0)

    async def ready(self, control: EngineControl, within: float) -> None:
        """Beside what every engine must do: its KV pool is as large as was asked for (SGLang only logs that it is not, and the same engine would have
        another one at each start), and a token was sampled (whose kernels would else be compiled in the first batch, as if it hung)."""
        await super().ready(control, within)
        if not self._on_gpus:
            return
        has = (await control.probe(within)).kv_tokens
        if has is not None and has < self._wanted * (1 - POOL_SLACK):
            raise EngineError(
                f"its KV pool has room for {has} tokens, and kv_tokens = {self._wanted} were asked for: the GPU has no more beside the weights and "
                "what others keep there; lower kv_tokens, slots or context, or raise --mem-fraction-static in args"
            )
        await control.canary(within, sampled=True)

    async def follow(self, pids: Callable[[], Awaitable[Iterable[int]]]) -> None:
        while True:
            await anyio.sleep(FOLLOW_S)
            await self._traces.look(await pids())

    async def trace(self, pids: Iterable[int]) -> None:
        await self._traces.look(pids)

    async def verify(self, control: EngineControl, version: Version, within: float) -> None:
        if self._checksums is None or not self._checksums.due(self._engine, self._incarnation):
            return
        checksum = await control.checksum(within)
        if (complaint := self._checksums.disagreement(self._engine, version, checksum)) is not None:
            raise EnginePoisoned(complaint, 200)
        log_for(self._log, self._engine, self._incarnation).info("weights verified", version=version, checksum=checksum[:16])

    def clean_up(self) -> None:
        self._traces.remove()


# -- its commands


def _commands(start: EngineStart, folder: Path, known: _Found) -> list[Command]:
    shape = members.shape(start.table.members, start.table.tp)
    return [_command(start, folder, known, member, len(shape)) for member in shape]


def _command(start: EngineStart, folder: Path, known: _Found, member: members.Member, count: int) -> Command:
    table, environment, directory = start.table, start.facts.environment, start.facts.paths.directory
    bundle = start.gpus
    shape = members.arguments(member, count, members.Ports(start.endpoint.window.first), tp=table.tp, ep=table.ep)
    described = _described(start, folder, known, shape)
    inherited = sglang.environment(described, environment.inherited("engine", table.pass_env).kept, table.env)
    gpus = visible([bundle[position] for position in member.gpus])
    return Command(
        argv=sglang.arguments(described),
        env=environment.complete(inherited, start.tag, python_path=None, gpus=gpus),
        cwd=directory.path,
        log=directory.log_of(start.engine, member.index or None),
        niceness=described.niceness,
    )


def _described(start: EngineStart, folder: Path, known: _Found, shape: list[str]) -> sglang.Spec:
    table = start.table
    assert table.python is not None, "a rule refuses it"
    assert table.context is not None, "load fills it in"
    return sglang.Spec(
        python=table.python,
        model=str(start.model),
        shape=shape,
        device="cuda" if start.gpus[0].uuid is not None else "cpu",
        gpus=table.tp,
        slots=table.slots,
        context=table.context,
        kv_tokens=table.kv_tokens or table.slots * table.context,
        seed=sglang.seed(start.pipeline.seed, start.engine.rank, start.incarnation),
        folder=str(folder),
        profile=known.profile,
        deterministic=table.deterministic,
        memory_fraction=_memory_fraction(start),
        libraries=known.cuda.libraries,
        cache=_cache(known.version, start.gpus[0].name, start.facts.environment.environ) if start.gpus[0].uuid is not None else None,
        cpus=sorted(os.sched_getaffinity(0)),
        args=table.args,
    )


def _memory_fraction(start: EngineStart) -> float | None:
    """Return what weights and pool are to be allowed of each GPU; None on a CPU, and where the sizes are not known."""
    table, totals = start.table, [gpu.total_bytes for gpu in start.gpus]
    known = [total for total in totals if total is not None]
    size = model_size(start.model)
    if len(known) < len(totals) or size is None or size.kv_token is None:
        return sglang.USUAL_MEMORY if known else None
    pool = (table.kv_tokens or table.slots * (table.context or 0)) * size.kv_token // 2
    return sglang.memory_fraction(size.weights // table.tp, pool // table.tp, min(known), RESIDUAL_BYTES)


def _cache(version: str, gpu: str, environ: Mapping[str, str]) -> str | None:
    """Return a folder for the kernels that this version compiles for this kind of GPU; None without a home."""
    home = environ.get("XDG_CACHE_HOME") or (f"{environ['HOME']}/.cache" if environ.get("HOME") else None)
    return None if home is None else f"{home}/trainshed/kernels/{re.sub(r'[^A-Za-z0-9.]+', '-', f'{version}-{gpu}')}"


def _version(python: str, environ: dict[str, str]) -> str:
    """Return which SGLang an interpreter has. Raises SpawnFailed."""
    try:
        return installed_version(python, "sglang", "SGLang", environ, ASK_S)
    except NotInstalled as error:
        raise SpawnFailed(f"{error}; name the interpreter of an environment that has it") from error


# -- what it leaves in /dev/shm


@dataclass(slots=True)
class Traces:
    """The TMPDIR of one incarnation, and the files in /dev/shm that its processes were seen to have open: removed when they are gone.

    They are noted in a file, too: should the supervisor be killed, its guardian (or, after both, the next start) reads it.
    """

    folder: Path
    log: Log
    seen: set[Path] = field(default_factory=set)

    @property
    def note(self) -> Path:
        """The file lies beside the TMPDIR, not in it."""
        return self.folder.with_name(self.folder.name + TRACES)

    async def look(self, pids: Iterable[int]) -> None:
        """Notes what these living processes have open."""
        found = await to_thread.run_sync(open_in_shm, frozenset(pids), abandon_on_cancel=True)
        if not found <= self.seen:
            self.seen |= found
            try:
                write_atomically(self.note, "".join(f"{path.name}\n" for path in sorted(self.seen)).encode())
            except OSError as error:  # it costs a file in /dev/shm if we are killed, and nothing else
                self.log.warning("cannot note what an engine has open in /dev/shm", error=str(error))

    def remove(self) -> None:
        remove_what_can_be(self.folder)
        for path in self.seen:
            path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def open_in_shm(pids: frozenset[int]) -> set[Path]:
    """Return the files of /dev/shm that these processes have mapped. They are compared by inode: the C library maps a semaphore before it names it."""
    mapped: set[int] = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
                mapped |= {int(line.split(maxsplit=5)[4]) for line in maps if " /dev/shm/" in line}
        except OSError:  # it has ended
            continue
    with os.scandir(SHM) as entries:
        return {Path(entry.path) for entry in entries if entry.name.startswith(LEFT_OVER) and entry.inode() in mapped}


# -- whether engines that say they have a version have its bytes


class Checksums:
    """The first checksum of each pipeline's newest versions, and whose it was."""

    def __init__(self) -> None:
        self._seen: dict[PipelineId, dict[Version, tuple[str, EngineId]]] = {}
        self._loads: dict[EngineId, tuple[Incarnation, int]] = {}

    def due(self, engine: EngineId, incarnation: Incarnation) -> bool:
        """Counts one load. True for the first of each incarnation, and now and then."""
        life, loads = self._loads.get(engine, (incarnation, 0))
        if life != incarnation:
            loads = 0
        self._loads[engine] = (incarnation, loads + 1)
        return loads % VERIFY_EVERY == 0

    def disagreement(self, engine: EngineId, version: Version, checksum: str) -> str | None:
        """Compares with the first that was seen of this version, or remembers it as the first. Returns what differs, in words, or None."""
        seen = self._seen.setdefault(engine.pipeline, {})
        for old in [known for known in seen if known < version - 1]:
            del seen[old]
        first, whose = seen.setdefault(version, (checksum, engine))
        if first == checksum:
            return None
        del seen[version]  # nobody knows which of the two is right; the next to load it is compared with nobody
        return f"checksum {checksum[:16]} of version {version} is not {first[:16]}, which {whose} has loaded"
