"""What a trainer rank and the supervisor say to each other, one frame a message. PURE.

Every rank of a trainer has its own socket pair (its descriptor number is in `TRAINSHED_FD`). Rank 0's calls decide. An answer
goes to *every* rank; the other ranks wait for it on their own descriptor. Calls are matched by `call`, a counter per kind of
call (0, 1, 2 … for leases, likewise for publishes), so that every rank running the same script counts the same numbers;
rollouts are matched by their number, checkpoints by their step.
"""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _Said(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """Trainer to supervisor."""


class Hello(_Said, frozen=True, tag="hello"):
    """First frame of every rank: it runs and reads its descriptor. Answered by `Welcome`."""

    rank: Count


class OpenRollout(_Said, frozen=True, tag="open_rollout"):
    """Rank 0 wants `target` samples. Answered by `RolloutOpened` when one engine is routable, or `Refused`."""

    rollout: Count
    target: Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class CloseRollout(_Said, frozen=True, tag="close_rollout"):
    """Rank 0 has what it wants; what still runs is aborted. Answered by `RolloutClosed`."""

    rollout: Count


class RequestLease(_Said, frozen=True, tag="request_lease"):
    """Rank 0 wants the GPUs of all these roles at once. Answered by `LeaseGranted` or `Refused`."""

    call: Count
    roles: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=8)]


class ExchangeLease(_Said, frozen=True, tag="exchange_lease"):
    """Rank 0 gives up the grant it holds for one of these roles, in one event. Answered like `RequestLease`."""

    call: Count
    roles: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=8)]


class Offloaded(_Said, frozen=True, tag="offloaded"):
    """*Every* rank says it after it has left the GPUs of lease `call`. Answered by `LeaseEnded` when all have and the GPUs measure empty."""

    call: Count


class Publish(_Said, frozen=True, tag="publish"):
    """Rank 0 has written a snapshot to the folder `name` under `Welcome.weights`. Answered by `Published`, or `Refused` (the snapshot is then gone)."""

    call: Count
    name: Name


class Checkpoint(_Said, frozen=True, tag="checkpoint"):
    """Rank 0 has saved the state after step `step` at `path`; a restart resumes at `step + 1`. Answered by `CheckpointRecorded`."""

    step: Count
    path: Text


class Report(_Said, frozen=True, tag="report"):
    """Figures of one step (`reward`, `loss` …); not answered."""

    step: Count
    metrics: Annotated[dict[Name, float], msgspec.Meta(max_length=64)]


TrainerMessage = Hello | OpenRollout | CloseRollout | RequestLease | ExchangeLease | Offloaded | Publish | Checkpoint | Report


class _Told(msgspec.Struct, frozen=True, tag_field="type"):
    """Supervisor to trainer."""


class Welcome(_Told, frozen=True, tag="welcome"):
    """All that a rank needs to know. Paths are absolute; `gpus` are this rank's device strings (`virtual:0`, or `cuda:0` inside CUDA_VISIBLE_DEVICES)."""

    pipeline: str
    rank: int
    world_size: int
    seed: int
    steps: int
    steps_done: int
    model: str
    url: str
    weights: str
    directory: str
    gpus: tuple[str, ...]
    checkpoint_path: str | None = None
    options: dict[str, msgspec.Raw] = {}
    roles: tuple[str, ...] = ("init", "train")  # whose leases hold a GPU of this rank
    version: int = 0  # newest weight version of the pipeline so far; above 0 a `restore` publishes even without a checkpoint


class RolloutOpened(_Told, frozen=True, tag="rollout_opened"):
    rollout: int


class RolloutClosed(_Told, frozen=True, tag="rollout_closed"):
    rollout: int


class LeaseGranted(_Told, frozen=True, tag="lease_granted"):
    """The GPUs of `roles` are this trainer's and measured empty."""

    call: int
    roles: tuple[str, ...]


class LeaseEnded(_Told, frozen=True, tag="lease_ended"):
    call: int


class Published(_Told, frozen=True, tag="published"):
    """From now on no request goes to an engine with an older version."""

    call: int
    version: int


class CheckpointRecorded(_Told, frozen=True, tag="checkpoint_recorded"):
    step: int


class Refused(_Told, frozen=True, tag="refused"):
    """The call `about` (the tag of the message: `open_rollout`, `request_lease` …) numbered `number` will not happen.

    `code` is stable and for programs: `nested_lease`, `unknown_role`, `gpu_fenced`, `own_gpus` (a rollout on engines whose every
    GPU one holds oneself), `no_engine` (no engine of the pipeline can come back), `out_of_order`, `bad_snapshot`, `stopping`.
    """

    about: str
    number: int
    code: str
    reason: str


class Stopping(_Told, frozen=True, tag="stopping"):
    """The supervisor is stopping: save what must be saved; a TERM follows after the grace."""

    grace_s: float


SupervisorMessage = (
    Welcome | RolloutOpened | RolloutClosed | LeaseGranted | LeaseEnded | Published | CheckpointRecorded | Refused | Stopping
)
