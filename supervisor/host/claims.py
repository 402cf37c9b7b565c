"""A claim says which GPUs of this box a run holds. Every user can read it, and nobody but its owner can make it, change it or keep it alive.

One file a run, `/dev/shm/trainshed-claim-<random>` (`locked_file.py`): who, where, which GPUs. The claim lives while its lock is held *and* the
process that it names lives.

Two who claim the same GPU at once both write first and look afterwards. So at least one of them sees the other, withdraws and tries again.
"""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.errors import SetUpError
from supervisor.host.locked_file import FOLDER, Entry, NoPlace, enter, lives, locked_files, namespace, require_place
from supervisor.host.processes.proc import read_stat
from supervisor.host.regular_file import user_name

__all__ = ["FOLDER", "Claim", "Entry", "GpusTaken", "Held", "NoPlace", "claim_gpus", "claims"]

PREFIX: Final = "trainshed-claim-"
VIRTUAL: Final = "virtual:"
"""So the key of a virtual GPU begins; a real one's is its UUID."""
_MOST: Final = 64
"""Claims of one other user that are looked at."""
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


def claim_gpus(claim: Claim, folder: Path = FOLDER) -> Entry:
    """Claim GPUs for this process. Raises GpusTaken when another run holds one of them, NoPlace where no claim can be made.

    `pid`, `start`, `namespace` and `since` are filled in. What died without removing its claim is cleared away.
    """
    require_place(folder)
    stat_ = read_stat(os.getpid())
    assert stat_ is not None, "we live"
    whole = msgspec.structs.replace(claim, pid=os.getpid(), start=stat_.start, namespace=namespace(), since=time.time())
    for last in (*[False] * (_TRIES - 1), True):
        entry = enter(folder, PREFIX, msgspec.json.encode(whole))
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


def claims(folder: Path = FOLDER, *, clear: bool = False) -> list[Held]:
    """Return every claim that lives, of all users, the oldest first. `clear` removes those of dead processes, as far as they are ours to remove."""
    found: list[Held] = []
    for file in locked_files(folder, PREFIX, _MOST, clear=clear):
        try:
            claim = _printable(msgspec.json.decode(file.content, type=Claim))
        except (ValueError, RecursionError):
            continue
        if lives(claim.pid, claim.start, claim.namespace, file.uid):
            found.append(Held(claim, file.uid, file.path, file.age))
    return sorted(found, key=lambda held: (-held.age, held.claim.run))


def _printable(claim: Claim) -> Claim:
    """Take out what would do something to a terminal: another user has written it."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return "".join(sign if sign.isprintable() else "?" for sign in value)
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return msgspec.structs.replace(claim, **{field: plain(getattr(claim, field)) for field in claim.__struct_fields__})
