"""The directory of one attempt at a run: everything about it lies here, and nothing elsewhere but what shared memory holds.

    <runs>/<config name>/attempt_N/
        config.toml  config.resolved.json  journal.jsonl  events/  gateways.json  supervisor.jsonl  figures.json  summary.json
        logs/<pipeline>.engine.0.log …   checkpoints/<pipeline>/   models/<pipeline>/
        control.sock  lock  run_id  supervisor.stack (when we hung or crashed)
    <runs>/latest -> <config name>/attempt_N

`<runs>` is `[host] directory`, or `runs` in the working directory. All of it is for its owner only (0700).
An attempt is made (`new_attempt`, `open_attempt`), and it begins (`begin`) when nothing more can refuse it: only then does `latest` point
at it. One that never began is removed again. Which attempt somebody means, `find.py` knows.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from supervisor.config.schema.tables import Config
from supervisor.errors import SetUpError, UsageError
from supervisor.host.atomic_file import write_atomically
from supervisor.host.processes.guardian import SWEPT_PREFIX
from supervisor.host.regular_file import open_regular, read_regular
from trainers.protocol.ids import GroupId, log_name

ATTEMPT: Final = re.compile(r"^attempt_([1-9][0-9]{0,8})\Z")
_TRIES: Final = 100
_RESERVE: Final = ".reserve"
_RESERVED_BYTES: Final = 64 << 10
"""Kept from the first moment on for the end of a run whose disk is full: its figures, its summary, the last lines of its log."""


@dataclass(slots=True)
class RunDirectory:
    """A RunDirectory is one attempt, locked by us until `close` (or our death). `run_id` is the same over all resumptions of the attempt."""

    path: Path
    run_id: str
    resumed: bool
    _lock: int = field(repr=False)
    begun: bool = False

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def supervisor_log(self) -> Path:
        return self.path / "supervisor.jsonl"

    @property
    def stack(self) -> Path:
        """Return where the supervisor's stack is written when it hangs or crashes."""
        return self.path / "supervisor.stack"

    @property
    def control_socket(self) -> Path:
        return self.path / "control.sock"

    def rank_socket(self, pipeline: str) -> Path:
        """Return where ranks that a launcher makes find the supervisor."""
        return self.path / f"{pipeline}.ranks.sock"

    def log_of(self, group: GroupId, rank: int | None = None) -> Path:
        """Return the log file of a child: `p1.engine.0.log` (followers of a bundle: `p1.engine.0.1.log`), `p1.trainer.0.log`, `p1.gateway.log`."""
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
        """Return the folder of this run in shared memory."""
        return Path(shm) / f"{SWEPT_PREFIX}{self.run_id}"

    def begin(self, config: Config, source: bytes) -> None:
        """Begin the run: from here on it stays, and is `latest`. `source` is the configuration file's bytes; without any, the record stays as it is.

        Raises SetUpError (a full disk): then it has not begun.
        """
        try:
            self._reserve()
            if source:
                write_atomically(self.path / "config.toml", source, mode=0o600)
                resolved = msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"
                write_atomically(self.path / "config.resolved.json", resolved, mode=0o600)
            if ATTEMPT.match(self.path.name):
                _point_latest(self.path.parent.parent, self.path)
        except OSError as error:
            raise SetUpError(f"{self.path}: a run cannot begin there: {error.strerror}. Free space, or set [host] directory.") from error
        self.begun = True

    def release_reserve(self) -> None:
        """Give up what was kept in reserve on the disk, so that the end of the run can be written down."""
        (self.path / _RESERVE).unlink(missing_ok=True)

    def _reserve(self) -> None:
        descriptor = open_regular(self.path / _RESERVE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.posix_fallocate(descriptor, 0, _RESERVED_BYTES)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give up the lock and remove an attempt that was made for nothing. A second call does nothing."""
        if self._lock < 0:
            return
        if not self.begun:
            (self.path / _RESERVE).unlink(missing_ok=True)
            if not self.resumed:
                shutil.rmtree(self.path, ignore_errors=True)
                with contextlib.suppress(OSError):  # others lie there
                    self.path.parent.rmdir()
        os.close(self._lock)
        self._lock = -1


def runs_directory(config: Config | None = None) -> Path:
    """Return where the runs of a configuration lie."""
    chosen = config.host.directory if config is not None else None
    return Path(chosen) if chosen is not None else Path("runs").absolute()


def new_attempt(runs: Path, name: str) -> RunDirectory:
    """Make the next attempt of the runs called `name`, locked. Raises SetUpError."""
    parent = runs / name
    try:
        for _ in range(_TRIES):
            parent.mkdir(parents=True, exist_ok=True)
            path = parent / f"attempt_{max(attempt_numbers(parent), default=0) + 1}"
            try:
                path.mkdir(mode=0o700)
            except (FileExistsError, FileNotFoundError):
                continue  # another supervisor was faster: it has made this one, or removed the one that it had made for nothing
            return _set_up(path, f"{name[:40]}-{secrets.token_hex(6)}")
    except OSError as error:
        raise SetUpError(
            f"{parent}: no directory for a run can be made there: {error.strerror}. Free space, or set [host] directory."
        ) from error
    raise SetUpError(f"{parent}: no free attempt after {_TRIES} tries.")


def _set_up(path: Path, run_id: str) -> RunDirectory:
    """Lock a new attempt and fill in what every attempt has. Raises OSError, and leaves nothing then."""
    try:
        attempt = RunDirectory(path, run_id, resumed=False, _lock=_locked(path))
        (path / "logs").mkdir()
        (path / "run_id").write_text(run_id + "\n")
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return attempt


def open_attempt(path: Path) -> RunDirectory:
    """Lock an existing attempt, to resume it. Raises UsageError when it is none, or when a supervisor has it."""
    path = path.absolute()
    try:
        run_id = read_regular(path / "run_id").decode(errors="replace").strip()
        lock = _locked(path)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES) and isinstance(error, BlockingIOError):
            raise already_running(path) from error
        raise UsageError(f"{path} is not the directory of a run: {error.strerror}.") from error
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", run_id) or ".." in run_id:
        os.close(lock)
        raise UsageError(f"{path}/run_id is damaged; this run cannot be resumed.")
    return RunDirectory(path, run_id, resumed=True, _lock=lock)


def already_running(path: Path) -> UsageError:
    return UsageError(f"{path}: another supervisor runs there. Stop it first (`supervise stop --run {path}`).")


def attempt_numbers(parent: Path) -> list[int]:
    """Return the numbers of the attempts in `<runs>/<config name>`, in no order."""
    try:
        names = os.listdir(parent)
    except OSError:
        return []
    return [int(match[1]) for name in names if (match := ATTEMPT.match(name))]


def is_running(path: Path) -> bool:
    """Return whether a supervisor has the attempt now."""
    try:
        os.close(_locked(path, create=False))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _locked(path: Path, create: bool = True) -> int:
    """Return a descriptor that holds the attempt's lock. Raises BlockingIOError when another process has it."""
    descriptor = open_regular(path / "lock", os.O_RDWR | (os.O_CREAT if create else 0))
    try:
        _flock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _flock(descriptor: int) -> None:
    """Try to lock for a tenth of a second, because `is_running` of another process holds the lock for a moment, too."""
    for _ in range(4):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.025)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _point_latest(runs: Path, attempt: Path) -> None:
    """Point `<runs>/latest` at the attempt, in one step; a `latest` that is no link is left alone."""
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
