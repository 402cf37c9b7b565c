"""A claim says which GPUs of this box a run holds. Every user can read it, and nobody but its owner can make it, change it or keep it alive.

One file a run, `/dev/shm/trainshed-claim-<random>`: who, where, which GPUs. The folder is root's and sticky, so that nobody removes or renames
what is another's, and a random name cannot be taken beforehand. The file comes to be with its content and its flock in one step
(O_TMPFILE, then a link): one that is not locked is of somebody dead. What the kernel says is believed, what the file says is shown: the
owner is the file's uid, and the claim lives while its lock is held *and* the process that it names lives.

Two who claim the same GPU at once both write first and look afterwards. So at least one of them sees the other, withdraws and tries again.
"""

import errno
import fcntl
import os
import secrets
import stat
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.errors import SetUpError
from supervisor.host.processes.proc import read_stat
from supervisor.host.regular_file import open_regular, user_name

FOLDER: Final = Path("/dev/shm")
PREFIX: Final = "trainshed-claim-"
VIRTUAL: Final = "virtual:"
"""So the key of a virtual GPU begins; a real one's is its UUID."""
_LARGEST: Final = 64 << 10
_MOST: Final = 64
"""Bytes of a claim, and claims of one user that are looked at: nobody can make us read without end, or hide what is another's."""
_SETTLED_S: Final = 1.0
"""A claim so old is not withdrawn any more, as a start that finds its GPUs taken withdraws its own."""
_TRIES: Final = 12


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says of itself. `gpus` are keys: a UUID, or `virtual:0 of FILE`; `labels` name the same GPUs to people. `since` is in seconds since the
    epoch; `start` and `namespace` tell the process `pid` from others of its number."""

    run: str
    name: str
    directory: str
    gpus: tuple[str, ...]
    labels: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    file: str = ""
    since: float = 0.0
    pid: int = 0
    start: int = 0
    namespace: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that lives. `uid` is its owner's, by the kernel's word."""

    claim: Claim
    uid: int
    path: Path
    age: float


class GpusTaken(SetUpError):
    """Another run holds a GPU. It has key, value and remedy; `by` says who."""

    def __init__(self, by: Held, taken: Sequence[str], virtual: bool) -> None:
        self.by = by
        claim, user = by.claim, user_name(by.uid)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(claim.since))
        how = f"End it (`bin/supervise stop --run {claim.directory}`)" if by.uid == os.geteuid() else f"Ask {user}"
        choice = "start a copy of the file (virtual GPUs belong to their file)" if virtual else "choose other GPUs"
        super().__init__(
            f"held by run {claim.name} of {user} (pid {claim.pid}, since {since}, {claim.directory})",
            key="host.virtual" if virtual else "host.gpus",
            value=_listed(taken),
            remedy=f"{how}, wait for its end, or {choice}",
        )


def _listed(labels: Sequence[str]) -> str:
    return f"GPU{'s' if len(labels) > 1 else ''} {', '.join(labels)}"


class NoPlace(Exception):
    """Claims cannot be kept on this machine: nobody can be kept off a GPU. The text says why."""


class Entry:
    """The claim of this process, until `close`, or until we die."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    def close(self) -> None:
        """Withdraw the claim. A second call does nothing."""
        if self._descriptor < 0:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def claim_gpus(claim: Claim, folder: Path = FOLDER) -> Entry:
    """Claim GPUs for this process. Raises GpusTaken when another run holds one of them, NoPlace where no claim can be made.

    `pid`, `start`, `namespace` and `since` are filled in. What died without removing its claim is cleared away.
    """
    _require_place(folder)
    stat_ = read_stat(os.getpid())
    assert stat_ is not None, "we live"
    whole = msgspec.structs.replace(claim, pid=os.getpid(), start=stat_.start, namespace=_namespace(), since=time.time())
    for last in (*[False] * (_TRIES - 1), True):
        entry = _enter(whole, folder)
        other = next(
            (held for held in claims(folder, clear=True) if held.path != entry.path and set(held.claim.gpus) & set(claim.gpus)), None
        )
        if other is None:
            return entry
        entry.close()
        if last or other.age > _SETTLED_S:
            raise _taken(claim, other)
        time.sleep(0.01 + secrets.randbelow(100) / 1000)  # it may be on the point of giving way to us
    raise AssertionError("the last try returns or raises")


def _taken(claim: Claim, other: Held) -> GpusTaken:
    names = dict(zip(claim.gpus, claim.labels or claim.gpus, strict=True))
    taken = [gpu for gpu in claim.gpus if gpu in other.claim.gpus]
    return GpusTaken(other, [names[gpu] for gpu in taken], taken[0].startswith(VIRTUAL))


def _require_place(folder: Path) -> None:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise NoPlace(f"{folder}: {error.strerror}") from error
    if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
        raise NoPlace(f"{folder}: others could remove what lies there")


def _enter(claim: Claim, folder: Path) -> Entry:
    """Make a claim of ours: nobody sees it before it is whole and locked."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise NoPlace(f"{folder}: {error.strerror}") from error
    try:
        os.fchmod(descriptor, 0o644)  # whatever the umask is
        os.write(descriptor, msgspec.json.encode(claim))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = folder / f"{PREFIX}{secrets.token_hex(8)}"
        here = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # with a descriptor given, Python calls linkat, which alone follows this link
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=here, follow_symlinks=True)
        finally:
            os.close(here)
        return Entry(path, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise NoPlace(f"{folder}: {error.strerror}") from error


def claims(folder: Path = FOLDER, *, clear: bool = False) -> list[Held]:
    """Return every claim that lives, of all users, the oldest first. `clear` removes those of dead processes, as far as they are ours to remove."""
    found: list[Held] = []
    seen: Counter[int] = Counter()
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith(PREFIX))
    except OSError:
        return []
    for name in names:
        try:
            owner = os.lstat(folder / name).st_uid
            seen[owner] += 1
            if seen[owner] <= _MOST and (held := _read(folder / name, clear)) is not None:
                found.append(held)
        except OSError:  # withdrawn meanwhile, or made unreadable by whoever wanted no claim
            continue
    return sorted(found, key=lambda held: (-held.age, held.claim.run))


def _read(path: Path, clear: bool) -> Held | None:
    """Read one claim; None when it is of somebody dead, or makes no sense. Raises OSError."""
    descriptor = open_regular(path)
    try:
        about = os.fstat(descriptor)
        if not _locked(descriptor):
            if clear:
                path.unlink()
            return None
        claim = _printable(msgspec.json.decode(os.read(descriptor, _LARGEST), type=Claim))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        os.close(descriptor)
    return Held(claim, about.st_uid, path, time.time() - about.st_ctime) if _lives(claim, about.st_uid) else None


def _printable(claim: Claim) -> Claim:
    """Take out what would do something to a terminal: another user has written it."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return "".join(sign if sign.isprintable() else "?" for sign in value)
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return msgspec.structs.replace(claim, **{field: plain(getattr(claim, field)) for field in claim.__struct_fields__})


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return True
    return False


def _lives(claim: Claim, uid: int) -> bool:
    """Return whether the process that a claim names lives, and is its owner's: anybody can lock a dead man's file, and so keep his claim.

    A process of another namespace (a container) cannot be looked at, nor one that /proc hides from us (hidepid): then the lock is believed.
    """
    if claim.namespace != _namespace():
        return True
    try:
        os.kill(claim.pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    found = read_stat(claim.pid)
    if found is None:
        return True
    try:
        owner = os.stat(f"/proc/{claim.pid}").st_uid
    except OSError:
        return True
    return found.start == claim.start and owner == uid


def _namespace() -> int:
    """Return what tells the numbers of this container's processes from those of another."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
