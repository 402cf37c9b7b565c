"""This module knows the runs of this box, of all users: whose each is, where it lies, which GPUs it holds. It reads their claims, and asks nobody."""

import os
from pathlib import Path

import msgspec

from supervisor.host.claims import VIRTUAL, Held, claims
from supervisor.host.regular_file import user_name


class BoxRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that goes on. `user` and `uid` are the kernel's word; the rest is what the run says of itself. `since` is in seconds since the epoch."""

    user: str
    uid: int
    run: str
    name: str
    directory: str
    pid: int
    since: float
    gpus: tuple[str, ...]
    virtual: bool
    pipelines: tuple[str, ...]
    file: str

    @property
    def ours(self) -> bool:
        return self.uid == os.geteuid()

    def is_below(self, folder: Path) -> bool:
        """Return whether it is this attempt, or lies in this folder of attempts or runs."""
        return Path(self.directory).is_relative_to(os.path.realpath(folder))

    def is_called(self, name: str) -> bool:
        """Return whether an operator may mean it by `quickstart`, `quickstart/attempt_2` or its run id."""
        return name in (self.run, self.name, self.name.partition("/")[0])

    def __str__(self) -> str:
        kind = "virtual GPUs" if self.virtual else "GPUs" if len(self.gpus) > 1 else "GPU"
        return f"{self.name} of {self.user} (uid {self.uid}): pid {self.pid}, {kind} {', '.join(self.gpus)}, {self.directory}"


def box_runs() -> list[BoxRun]:
    """Return every run that goes on, the oldest first."""
    return [_run(held) for held in claims()]


def _run(held: Held) -> BoxRun:
    claim = held.claim
    return BoxRun(
        user=user_name(held.uid),
        uid=held.uid,
        run=claim.run,
        name=claim.name,
        directory=claim.directory,
        pid=claim.pid,
        since=claim.since,
        gpus=claim.labels or claim.gpus,
        virtual=any(gpu.startswith(VIRTUAL) for gpu in claim.gpus),
        pipelines=claim.pipelines,
        file=claim.file,
    )
