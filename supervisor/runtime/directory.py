"""The directory of one attempt at a run: everything about it lies here, and nothing elsewhere but what shared memory holds.

    <runs>/<config name>/attempt_N/
        config.toml  config.resolved.json  journal.jsonl  events/  supervisor.jsonl  summary.json
        logs/<pipeline>.engine.0.log …   checkpoints/<pipeline>/   models/<pipeline>/
        control.sock  lock  run_id
    <runs>/latest -> <config name>/attempt_N

`<runs>` is `[host] directory`, or `runs` in the working directory. All of it is for its owner only (0700).
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from engines.ids import EngineId, GatewayId, GroupId, TrainerId
from supervisor.config import Config
from supervisor.errors import SetUpError, UsageError

ATTEMPT: Final = re.compile(r"^attempt_([1-9][0-9]{0,8})\Z")
_TRIES: Final = 100


@dataclass(slots=True)
class RunDirectory:
    """One attempt, locked by us until `close` (or our death). `run_id` is the same over all resumptions of the attempt."""

    path: Path
    run_id: str
    resumed: bool
    _lock: int = field(repr=False)

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.jsonl"

    @property
    def control_socket(self) -> Path:
        return self.path / "control.sock"

    def log_of(self, group: GroupId, rank: int | None = None) -> Path:
        """The log file of a child: `p1.engine.0.log` (followers of a bundle: `p1.engine.0.1.log`), `p1.trainer.0.log`, `p1.gateway.log`."""
        return self.path / "logs" / log_name(group, rank)

    def checkpoints(self, pipeline: str) -> Path:
        return self._made("checkpoints", pipeline)

    def models(self, pipeline: str) -> Path:
        return self._made("models", pipeline)

    def _made(self, *parts: str) -> Path:
        path = self.path.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def shared_memory(self, shm: str) -> Path:
        """The folder of this run in shared memory."""
        return Path(shm) / f"trainshed-{self.run_id}"

    def write_config(self, source: bytes, config: Config) -> None:
        """The file as it was read, and as it was understood. Raises OSError."""
        (self.path / "config.toml").write_bytes(source)
        resolved = msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
        (self.path / "config.resolved.json").write_bytes(resolved)

    def close(self) -> None:
        """Gives up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def log_name(group: GroupId, rank: int | None = None) -> str:
    match group:
        case EngineId(pipeline=pipeline, rank=engine):
            return f"{pipeline}.engine.{engine}.log" if not rank else f"{pipeline}.engine.{engine}.{rank}.log"
        case TrainerId(pipeline=pipeline):
            return f"{pipeline}.trainer.{rank or 0}.log"
        case GatewayId(pipeline=pipeline):
            return f"{pipeline}.gateway.log"


def runs_directory(config: Config | None = None) -> Path:
    """Where the runs of a configuration lie."""
    chosen = config.host.directory if config is not None else None
    return Path(chosen) if chosen is not None else Path("runs").absolute()


def new_attempt(runs: Path, name: str) -> RunDirectory:
    """The next attempt of the runs called `name`, locked, with `latest` pointing at it. Raises SetUpError."""
    parent = runs / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            path = parent / f"attempt_{max(attempts(parent), default=0) + 1}"
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue  # another supervisor was faster
            lock = _locked(path)
            (path / "logs").mkdir()
            run_id = f"{name[:40]}-{secrets.token_hex(6)}"
            (path / "run_id").write_text(run_id + "\n")
            _point_latest(runs, path)
            return RunDirectory(path, run_id, resumed=False, _lock=lock)
    except OSError as error:
        raise SetUpError(
            f"{parent}: no directory for a run can be made there: {error.strerror}. Free space, or set [host] directory."
        ) from error
    raise SetUpError(f"{parent}: no free attempt after {_TRIES} tries.")


def open_attempt(path: Path) -> RunDirectory:
    """An existing attempt, locked, to be resumed. Raises UsageError when it is none, or when a supervisor has it."""
    path = path.absolute()
    try:
        run_id = (path / "run_id").read_text().strip()
        lock = _locked(path)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES) and isinstance(error, BlockingIOError):
            raise UsageError(f"{path}: another supervisor runs there. Stop it first (`supervise stop --run {path}`).") from error
        raise UsageError(f"{path} is not the directory of a run: {error.strerror}.") from error
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", run_id) or ".." in run_id:
        os.close(lock)
        raise UsageError(f"{path}/run_id is damaged; this run cannot be resumed.")
    if ATTEMPT.match(path.name):
        _point_latest(path.parent.parent, path)
    return RunDirectory(path, run_id, resumed=True, _lock=lock)


def attempts(parent: Path) -> list[int]:
    """The numbers of the attempts in `<runs>/<config name>`, in no order."""
    try:
        names = os.listdir(parent)
    except OSError:
        return []
    return [int(match[1]) for name in names if (match := ATTEMPT.match(name))]


def newest_attempt(parent: Path) -> Path | None:
    """The newest attempt in `<runs>/<config name>`, None when there is none."""
    numbers = attempts(parent)
    return parent / f"attempt_{max(numbers)}" if numbers else None


def find_run(run: str | None, runs: Path | None = None) -> Path:
    """The attempt that an operator means: nothing (the latest), a path, or `name` or `name/attempt_N` under `runs`. Raises UsageError."""
    runs = runs if runs is not None else runs_directory()
    if run is None:
        return _attempt_in(runs / "latest", f"No run in {runs}. Start one, or name its directory.")
    candidates = [Path(run), runs / run]
    for candidate in candidates:
        if os.path.isdir(candidate):
            return _attempt_in(candidate, f"{run} holds no run.")
    raise UsageError(f"There is no run {run} (looked for {' and '.join(str(candidate.absolute()) for candidate in candidates)}).")


def _attempt_in(path: Path, otherwise: str) -> Path:
    if os.path.isfile(path / "run_id"):
        return path.resolve()
    for inner in (newest_attempt(path), path / "latest"):
        if inner is not None and os.path.isfile(inner / "run_id"):
            return inner.resolve()
    raise UsageError(otherwise)


def is_running(path: Path) -> bool:
    """Whether a supervisor has the attempt now."""
    try:
        os.close(_locked(path, create=False))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _locked(path: Path, create: bool = True) -> int:
    """A descriptor that holds the attempt's lock. Raises BlockingIOError when another process has it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    descriptor = os.open(path / "lock", flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "its lock is not a file")
        _flock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _flock(descriptor: int) -> None:
    """Tries for a tenth of a second: `is_running` of somebody else holds the lock for a moment, too."""
    for _ in range(4):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.025)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _point_latest(runs: Path, attempt: Path) -> None:
    """`<runs>/latest` -> the attempt, replaced in one step; a `latest` that is no link is left alone."""
    link = runs / "latest"
    if os.path.lexists(link) and not link.is_symlink():
        return
    new = runs / f".latest-{secrets.token_hex(4)}"
    new.symlink_to(os.path.relpath(attempt, runs))
    try:
        os.replace(new, link)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
