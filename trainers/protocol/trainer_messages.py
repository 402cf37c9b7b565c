"""This module defines the messages between a trainer's ranks and the supervisor, one a frame (`trainers.protocol.framing`).

On the wire a message is one JSON object; `type` is the tag of its class, the other keys are its fields. From a trainer unknown keys are an
error, so that a misspelt one is not passed over; to a trainer they are allowed, so that an older client reads a newer supervisor.

    rank 0 -> supervisor    {"type":"open_rollout","rollout":3,"target":256}
    supervisor -> ranks     {"type":"rollout_opened","rollout":3}

Messages are small (100 bytes; `Report` up to 64 figures, `Checkpoint` a path of 4,096 characters, `Welcome` the trainer's options).

Every rank of a trainer has its own socket pair (its descriptor number is in `TRAINSHED_FD`). Rank 0's calls decide. An answer
goes to *every* rank (but `AskedAlike`); the other ranks wait for it on their own descriptor. Calls are matched by `call`, a counter per kind of
call (0, 1, 2 … for leases, likewise for publishes), so that every rank running the same script counts the same numbers;
rollouts are matched by their number, checkpoints by their step.
"""

from typing import Annotated, Final

import msgspec

MAX_FROM_TRAINER: Final = 1 << 17
"""A frame of a trainer's has at most so many bytes: the largest message, a `Report`, has 9 KB. Decoding one takes 3 ms at most."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_TEXT = r"^[^\x00\ud800-\udfff]*\Z"
"""What may stand in a path and be written as UTF-8: no NUL, no half of a pair."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=_TEXT)]
Text = Annotated[str, msgspec.Meta(max_length=4096, pattern=_TEXT)]

SampleName = Annotated[int, msgspec.Meta(ge=0, le=10**15 - 1)] | Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][!-~]{0,199}\Z")]
"""A sample of a rollout: its number, or the name that was made of its key (`seeds.sample_name`)."""


class _FromTrainer(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """A rank tells the supervisor something."""


class Hello(_FromTrainer, frozen=True, tag="hello", omit_defaults=True):
    """First frame of every rank: it runs and reads its descriptor. Answered by `Welcome`.

    A rank that a launcher has made has no descriptor. It connects to the socket that `TRAINSHED_SOCKET` names, shows the `token` of
    `TRAINSHED_TOKEN`, and says how many ranks there are; it is `Refused` (call 0) where it cannot be one of them.
    """

    rank: Count
    world_size: Count = 0
    token: Annotated[str, msgspec.Meta(max_length=64)] = ""


class OpenRollout(_FromTrainer, frozen=True, tag="open_rollout", omit_defaults=True):
    """Rank 0 wants `target` samples. Answered by `RolloutOpened` when one engine is routable, or `Refused`.

    With `per_rank` every rank says it, and wants so many samples of its own: the demand is their sum, and rank 0's opens it.
    With `trajectories` it wants so many of them: however few samples run, the demand ends with `EndTrajectories`. Numbers from
    `ids.EVALUATIONS` on are evaluations, which are no step of the trainer.
    """

    rollout: Count
    target: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    per_rank: bool = False
    trajectories: bool = False


class CloseRollout(_FromTrainer, frozen=True, tag="close_rollout"):
    """Rank 0 has what it wants; what still runs is aborted. Answered by `RolloutClosed`.

    A rollout that is `per_rank` ends when every rank has said it.
    """

    rollout: Count


class Asked(_FromTrainer, frozen=True, tag="asked"):
    """*Every* rank says, before a rollout that is not `per_rank` is closed, what it has asked for there: how many samples, and a digest of them.

    The other ranks are answered, each by itself, when rank 0's is known: by `AskedAlike`, or by `Refused` (to all) where theirs differs.
    """

    rollout: Count
    samples: Count
    digest: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9a-f]*\Z")]


class EndTrajectories(_FromTrainer, frozen=True, tag="end_trajectories"):
    """So many trajectories of the rollout have ended by now: rank 0's, or with `per_rank` each rank's own. Not answered."""

    rollout: Count
    ended: Count


class Choose(_FromTrainer, frozen=True, tag="choose"):
    """Rank 0 has chosen these samples of a rollout, and the other ranks shall take the same. Answered by `Chosen`."""

    call: Count
    rollout: Count
    samples: Annotated[tuple[SampleName, ...], msgspec.Meta(max_length=100_000)]


class RequestLease(_FromTrainer, frozen=True, tag="request_lease"):
    """Rank 0 wants the GPUs of all these roles at once. Answered by `LeaseGranted` or `Refused`."""

    call: Count
    roles: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=8)]


class ExchangeLease(_FromTrainer, frozen=True, tag="exchange_lease"):
    """Rank 0 gives up the grant it holds for one of these roles, in one event. Answered like `RequestLease`."""

    call: Count
    roles: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=8)]


class Offloaded(_FromTrainer, frozen=True, tag="offloaded"):
    """*Every* rank says it after it has left the GPUs of lease `call`. Answered by `LeaseEnded` when all have and the GPUs measure empty."""

    call: Count


class Publish(_FromTrainer, frozen=True, tag="publish", omit_defaults=True):
    """Rank 0 has written a snapshot to the folder `name` under `Welcome.weights`. Answered by `Published`, or `Refused` (the snapshot is then gone).

    With a `code`, rank 0 could not write it, for this `reason`: nothing is there, and every rank is `Refused` in these words.
    """

    call: Count
    name: Name
    code: Annotated[str, msgspec.Meta(max_length=64, pattern=_TEXT)] = ""
    reason: Text = ""


class Checkpoint(_FromTrainer, frozen=True, tag="checkpoint"):
    """Rank 0 has saved the state after step `step` at `path`; a restart resumes at `step + 1`. Answered by `CheckpointRecorded`."""

    step: Count
    path: Text


class Report(_FromTrainer, frozen=True, tag="report"):
    """Figures of one step (`reward`, `loss` …); not answered."""

    step: Count
    metrics: Annotated[dict[Name, float], msgspec.Meta(max_length=64)]


TrainerMessage = (
    Hello
    | OpenRollout
    | CloseRollout
    | Asked
    | EndTrajectories
    | Choose
    | RequestLease
    | ExchangeLease
    | Offloaded
    | Publish
    | Checkpoint
    | Report
)


class _ToTrainer(msgspec.Struct, frozen=True, tag_field="type"):
    """The supervisor tells a rank something."""


class Welcome(_ToTrainer, frozen=True, tag="welcome"):
    """The answer to `Hello`: all that a rank needs to know.

    Paths are absolute; `gpus` are this rank's device strings (`virtual:0`, or `cuda:0` inside CUDA_VISIBLE_DEVICES).
    """

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


class RolloutOpened(_ToTrainer, frozen=True, tag="rollout_opened"):
    """An engine is routable: requests of the rollout are served."""

    rollout: int


class RolloutClosed(_ToTrainer, frozen=True, tag="rollout_closed"):
    """Nothing of the rollout runs any more."""

    rollout: int


class AskedAlike(_ToTrainer, frozen=True, tag="asked_alike"):
    """This rank has asked for what rank 0 has asked for."""

    rollout: int


class Chosen(_ToTrainer, frozen=True, tag="chosen"):
    """Rank 0 has chosen these samples, for every rank."""

    call: int
    samples: tuple[SampleName, ...]


class LeaseGranted(_ToTrainer, frozen=True, tag="lease_granted"):
    """The GPUs of `roles` are this trainer's and measured empty."""

    call: int
    roles: tuple[str, ...]


class LeaseEnded(_ToTrainer, frozen=True, tag="lease_ended"):
    """Every rank has left the GPUs of the lease, and they measure empty."""

    call: int


class Published(_ToTrainer, frozen=True, tag="published"):
    """From now on no request goes to an engine with an older version."""

    call: int
    version: int


class CheckpointRecorded(_ToTrainer, frozen=True, tag="checkpoint_recorded"):
    """A restart from now on resumes after this step."""

    step: int


class Refused(_ToTrainer, frozen=True, tag="refused"):
    """The call `about` (the tag of the message: `open_rollout`, `request_lease` …) numbered `number` will not happen.

    `code` is stable and for programs: `nested_lease`, `unknown_role`, `gpu_fenced`, `own_gpus` (a rollout on engines whose every
    GPU one holds oneself), `no_engine` (no engine of the pipeline can come back), `out_of_order`, `stopping`,
    `ranks_ask_apart` (ranks of a rollout that is not `per_rank` have asked for different samples);
    of a publish `bad_snapshot`, `does_not_fit`, `incomplete`, and what the client finds: `not_finite`, `sharded`, `unmerged_adapter`, `no_room`.
    """

    about: str
    number: int
    code: str
    reason: str


class Stopping(_ToTrainer, frozen=True, tag="stopping"):
    """The supervisor is stopping: save what must be saved; a TERM follows after the grace."""

    grace_s: float


SupervisorMessage = (
    Welcome
    | RolloutOpened
    | RolloutClosed
    | AskedAlike
    | Chosen
    | LeaseGranted
    | LeaseEnded
    | Published
    | CheckpointRecorded
    | Refused
    | Stopping
)
