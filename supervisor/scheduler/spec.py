"""Specs are what the scheduler knows of the box before anything happens: facts of the configuration, as plain data."""

from dataclasses import dataclass
from enum import IntEnum

from trainers.protocol.ids import GpuId, PipelineId


class Priority(IntEnum):
    """The priority of a lease says who wins a GPU: the lower number does, and only a rollout can be preempted."""

    INITIALIZATION = 0
    ACTOR_TRAINING = 1
    CRITIC_TRAINING = 2
    OLD_LOG_PROBS = 3
    REFERENCE_LOG_PROBS = 4
    VALUE_COMPUTE = 5
    ROLLOUT = 6


ROLE_PRIORITY = {
    "init": Priority.INITIALIZATION,
    "train": Priority.ACTOR_TRAINING,
    "critic": Priority.CRITIC_TRAINING,
    "old_log_probs": Priority.OLD_LOG_PROBS,
    "reference": Priority.REFERENCE_LOG_PROBS,
    "value": Priority.VALUE_COMPUTE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits are the deadlines of everything that is awaited, in seconds, and the restart budget.

    What an operator may set has no default here: `supervisor.config.limits` makes it from `[health]`. What has one is the scheduler's own.
    """

    start: float
    drain: float
    pause: float
    wake: float
    load: float
    release: float
    grace: float
    order: float = 10.0
    restarts: int
    restart_window: float
    quiet_rollout: float = 60.0
    ageing: float = 60.0
    remeasure: float = 5.0
    straggler: float = 60.0
    gateway_start: float = 30.0
    attempt: float

    @property
    def told(self) -> float:
        """Return the part of the grace in which a trainer that was told to stop may end by itself; then it gets its TERM, and the rest."""
        return self.grace * 0.75

    @property
    def end(self) -> float:
        """Return the seconds that processes may take to exit: grace, then KILL, then as long as a dying GPU process may take."""
        return self.grace + self.release + self.order


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The pool of engines of one pipeline: dp rank r owns `gpus[r*tp:(r+1)*tp]`, runs `slots` samples at once and consists of `members` processes
    (and what these start)."""

    gpus: tuple[GpuId, ...]
    tp: int
    slots: int
    eager: bool = False
    members: int = 1

    def bundle(self, rank: int) -> tuple[GpuId, ...]:
        return self.gpus[rank * self.tp : (rank + 1) * self.tp]

    @property
    def ranks(self) -> range:
        return range(len(self.gpus) // self.tp)


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """The ranks of one pipeline's trainer and the GPUs of each role it may lease ("train" always, "init" = all of them).

    `processes` that are started; 0: one a rank. Where they make the ranks by themselves, `world_size` holds until the first of these has said hello.
    """

    roles: dict[str, tuple[GpuId, ...]]
    world_size: int
    lease_limit: float
    processes: int = 0

    def gpus(self, roles: tuple[str, ...]) -> tuple[GpuId, ...]:
        """Return every GPU of these roles, sorted, each once."""
        return tuple(sorted({gpu for role in roles for gpu in self.roles[role]}))


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline is one RL job. `version` and `steps_done` are not 0 when a run is resumed."""

    id: PipelineId
    engine: EngineSpec
    trainer: TrainerSpec
    share: float = 1.0
    version: int = 0
    steps_done: int = 0
    steps: int = 0  # of the whole run; 0: not known
    on_publish: str = "continue"  # "finish": an engine takes new weights when what runs on it has ended


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules say who gets how many engines; `supervisor.config.limits` makes them from `[scheduler]`."""

    targets: str
    minimum_hold: float
    max_starting: int


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """A box is one host with its GPUs and pipelines."""

    gpus: tuple[GpuId, ...]
    pipelines: tuple[PipelineSpec, ...]
    limits: Limits
    rules: Rules
