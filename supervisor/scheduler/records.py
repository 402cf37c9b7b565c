"""Records are the state of what lives on the box: engines, trainers, gateways, pipelines. What follows from it is decided in `groups`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, assert_never

from engines.lifecycle.state import TRANSITIONS, EngineState, Transition, advance
from supervisor.scheduler.planning.costs import MoveCost, Pace
from supervisor.scheduler.planning.reservations import Request
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, TrainerId, Version

from .engine_life import FIRST_LIFE, PHASES, EngineLife, Pausing, Teardown
from .events import MAKER_LOST
from .faults import Fault
from .restarts import Budget
from .rollouts import Rollout
from .spec import BoxSpec, PipelineSpec, Priority


@dataclass(slots=True)
class Engine:
    """One engine group. `op` is the id of the one action under way for it, if any.

    What ends with its processes is in `life`. A `fault` outlives them: it is open from the failure until the group is well again.
    """

    id: EngineId
    gpus: tuple[GpuId, ...]
    slots: int
    budget: Budget
    state: EngineState = EngineState.COLD
    life: EngineLife = field(default_factory=EngineLife)
    op: int | None = None
    held: bool = False  # an operator's pause
    drained: bool = False  # an operator's drain: held, and without processes
    since: float = 0.0  # of the state
    not_before: float = 0.0  # of the next start
    fault: Fault | None = None
    pauses: int = 0
    wakes: int = 0
    restarts: int = 0
    note: str = ""
    failed_at: float | None = None  # the last time, for people
    by_operator: bool = False  # that it was an operator who wanted it
    failed_with: Version | None = None  # the published weights that it was loading or computing with when it failed the last time
    cost: MoveCost = field(default_factory=MoveCost)

    def transition(self, transition: Transition, now: float) -> None:
        """Go to the next state of the table; a life, or the record of a state, ends with it. Raises KeyError: a bug of ours."""
        self.state = advance(self.state, transition)
        self.since = now
        self.cost.observe(transition, now)
        if transition is Transition.GONE:
            self.life = EngineLife(Incarnation(self.life.incarnation + 1))
        elif (phase := PHASES.get(self.state)) is None:
            self.life.phase = None
        elif not isinstance(self.life.phase, phase):
            self.life.phase = phase()

    @property
    def pausing(self) -> Pausing:
        """Return the record of the state pausing. Raises AssertionError in any other."""
        assert isinstance(self.life.phase, Pausing), f"{self.id} is {self.state.value}"
        return self.life.phase

    @property
    def teardown(self) -> Teardown:
        """Return the record of its teardown. Raises AssertionError while its life is not ending."""
        assert isinstance(self.life.phase, Teardown), f"{self.id} is {self.state.value}"
        return self.life.phase

    @property
    def incarnation(self) -> Incarnation:
        return self.life.incarnation

    @property
    def version(self) -> Version | None:
        return self.life.version

    @property
    def route(self) -> Version | None:
        """Return the version under which the gateway routes to it."""
        return self.life.routing.version

    @property
    def pids(self) -> tuple[int, ...]:
        return self.life.pids

    @property
    def in_flight(self) -> int:
        return self.life.load.in_flight

    @property
    def completed(self) -> int:
        return self.life.load.completed

    @property
    def failures(self) -> int:
        """Return how many requests failed in a row."""
        return self.life.load.failures

    @property
    def tokens(self) -> int:
        return self.life.load.tokens

    def can(self, transition: Transition) -> bool:
        return (self.state, transition) in TRANSITIONS

    @property
    def awake(self) -> bool:
        """Return whether it holds its GPUs to work with them, or is on the way there."""
        return self.state in (EngineState.STARTING, EngineState.WAKING, EngineState.LOADING, EngineState.SERVING)

    @property
    def rests(self) -> bool:
        """Return whether it holds nothing and nothing is under way, as for most engines of a large box."""
        state = self.state
        return state is EngineState.PAUSED or state is EngineState.COLD or state is EngineState.RETIRED

    def in_flight_possible(self, pipeline: "Pipeline") -> bool:
        """Return whether requests of ours may still run on it: its gateway lives and has had a route to it since it was woken."""
        return pipeline.gateway.up and self.life.routing.used


class TrainerState(Enum):
    COLD = "cold"
    STARTING = "starting"
    RUNNING = "running"
    QUARANTINED = "quarantined"  # failed; being killed, then measured
    STOPPING = "stopping"
    FINISHED = "finished"
    RETIRED = "retired"


class TrainerTransition(Enum):
    START = "start"
    STARTED = "started"
    FAIL = "unplanned exit, failed action or deadline"
    FINISH = "every rank ended with 0"
    STOP = "stop"
    GONE = "gone, memory measured free"
    GIVE_UP = "restart budget spent"
    RESET = "operator's reset"


_S, _T = TrainerState, TrainerTransition
TRAINER_TRANSITIONS = {
    (_S.COLD, _T.START): _S.STARTING,
    (_S.STARTING, _T.STARTED): _S.RUNNING,
    (_S.STARTING, _T.FAIL): _S.QUARANTINED,
    (_S.RUNNING, _T.FAIL): _S.QUARANTINED,
    (_S.STOPPING, _T.FAIL): _S.STOPPING,
    (_S.RUNNING, _T.FINISH): _S.FINISHED,
    (_S.COLD, _T.STOP): _S.FINISHED,
    (_S.STARTING, _T.STOP): _S.STOPPING,
    (_S.RUNNING, _T.STOP): _S.STOPPING,
    (_S.QUARANTINED, _T.STOP): _S.STOPPING,
    (_S.STOPPING, _T.GONE): _S.FINISHED,
    (_S.QUARANTINED, _T.GONE): _S.COLD,
    (_S.COLD, _T.GIVE_UP): _S.RETIRED,
    (_S.RETIRED, _T.RESET): _S.COLD,
    (_S.RETIRED, _T.STOP): _S.FINISHED,
}


@dataclass(slots=True)
class Grant:
    """A grant is the GPUs that a trainer has, from the moment all ranks are told to the moment all have left and the GPUs measure empty."""

    call: int
    roles: tuple[str, ...]
    gpus: tuple[GpuId, ...]
    priority: Priority
    since: float
    offloaded: set[int] = field(default_factory=set)
    leaving: float | None = None  # when the last rank said that it has left
    leaving_gpus: tuple[GpuId, ...] = ()  # an exchange gives these back
    measure: int | None = None
    warned: bool = False

    def give_up(self, gpus: Iterable[GpuId]) -> None:
        """Give these up in an exchange: they are the trainer's until they measure empty, and no part of the grant any more."""
        self.leaving_gpus = (*self.leaving_gpus, *gpus)
        self.gpus = tuple(gpu for gpu in self.gpus if gpu not in self.leaving_gpus)

    def measured_empty(self, gpus: Iterable[GpuId]) -> None:
        """These GPUs measure empty: the trainer has them no longer."""
        self.measure = None
        self.gpus, self.leaving_gpus = (tuple(gpu for gpu in have if gpu not in gpus) for have in (self.gpus, self.leaving_gpus))


@dataclass(slots=True)
class Publishing:
    """A snapshot on its way to being the published version."""

    call: int
    version: Version
    adopted: bool = False


@dataclass(slots=True)
class Trainer:
    """A trainer is the rank processes of one pipeline."""

    id: TrainerId
    world_size: int
    budget: Budget
    steps_done: int
    restored: bool = True  # its weights are the published ones (not after a restart, until it publishes)
    state: TrainerState = TrainerState.COLD
    incarnation: Incarnation = FIRST_LIFE
    op: int | None = None
    request: Request | None = None
    grant: Grant | None = None
    lease_ended_at: float | None = None  # when its last lease ended
    publishing: Publishing | None = None
    joining: dict[int, dict[int, int]] = field(default_factory=dict)  # rollout -> rank -> its target, until rank 0 opens it
    asked: dict[int, dict[int, tuple[int, str] | None]] = field(
        default_factory=dict
    )  # rollout -> rank -> (samples, digest); rank 0 None: unknown
    processes: int = 0  # of a trainer whose ranks are made by what was started; 0: one process a rank
    left: dict[int, float] = field(default_factory=dict)  # of such a trainer: rank -> when its channel was closed
    exits: dict[int, int] = field(default_factory=dict)  # process (a rank's, or the launcher) -> exit code
    first_exit: float | None = None
    teardown: Teardown | None = None
    greeted: bool = False  # a rank of this life has said hello: it hears what it is told
    not_before: float = 0.0
    pids: tuple[int, ...] = ()
    restarts: int = 0
    note: str = ""
    failed_at: float | None = None  # the last time, for people
    by_operator: bool = False  # that it was an operator who wanted it

    @property
    def members(self) -> int:
        """How many processes of it were started."""
        return self.processes or self.world_size

    def transition(self, transition: TrainerTransition) -> None:
        """Go to the next state of the table; the record of a teardown exists while its life is ending. Raises KeyError: a bug of ours."""
        self.state = TRAINER_TRANSITIONS[self.state, transition]
        if self.state not in (TrainerState.QUARANTINED, TrainerState.STOPPING):
            self.teardown = None
        elif self.teardown is None:
            self.teardown = Teardown()


@dataclass(slots=True)
class Gateway:
    """A gateway is the HTTP front of one pipeline. It holds no GPU; when it dies it is replaced at once on the same socket."""

    id: GatewayId
    incarnation: Incarnation = FIRST_LIFE
    op: int | None = None
    up: bool = False
    dying: bool = False  # condemned; its processes are being ended
    hopeless: str = ""  # what it was told last
    not_before: float = 0.0
    failures: int = 0
    pids: tuple[int, ...] = ()
    note: str = ""
    failed_at: float | None = None  # the last time, for people
    by_operator: bool = False  # that it was an operator who wanted it

    @property
    def state(self) -> str:
        """Its state in a word, as `status` shows it. A gateway that has failed is being replaced."""
        return "serving" if self.up else "failed" if self.dying else "starting" if self.op is not None else "cold"


Group = Engine | Trainer | Gateway
"""A group of processes that live and end together; each has an `id`, an `incarnation`, and `op`, the id of the one action under way for it."""


@dataclass(slots=True)
class Figures:
    """The figures of a pipeline that the summary and the views show."""

    samples: int = 0
    rewards: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    waited: float = 0.0
    waits_since: dict[str, float] = field(default_factory=dict)

    def reported(self, step: int, metrics: dict[str, float]) -> None:
        """Take over what the trainer reports of a step."""
        self.step, self.metrics = step, {**self.metrics, **metrics}
        if "reward" in metrics:
            self.rewards.append(metrics["reward"])


MAKE_AGAIN_S: Final = (0.0, 2.0, 10.0)  # until a model is made again whose maker was lost, each time


@dataclass(slots=True)
class Pipeline:
    spec: PipelineSpec
    engines: dict[int, Engine]
    trainer: Trainer
    gateway: Gateway
    published: Version
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    closing: dict[int, Rollout] = field(default_factory=dict)  # no demand any more; the gateway still answers its last samples
    snapshots: set[Version] = field(default_factory=set)  # adopted and not yet dropped
    model_ready: bool = False
    model_op: int | None = None
    model_losses: int = 0  # of those who were making it, through no fault of theirs
    model_not_before: float = 0.0
    forget: bool = False  # the gateway must forget the dead trainer's rollouts
    step: int = 0  # of the newest rollout
    suspended: bool = False  # an operator's pause of the whole pipeline
    failed: str = ""
    pace: Pace = field(default_factory=Pace)
    figures: Figures = field(default_factory=Figures)

    @property
    def id(self) -> PipelineId:
        return self.spec.id

    @property
    def ended(self) -> bool:
        return self.trainer.state in (TrainerState.FINISHED, TrainerState.RETIRED)

    @property
    def lacks_model(self) -> bool:
        """Return whether its model is still to be made, and nobody is making it."""
        return not self.model_ready and self.model_op is None and not self.ended

    def lose_maker(self, code: str, now: float) -> float | None:
        """Return the seconds until the model is made again whose maker has failed with `code`; None if it is not: it has failed, or too often."""
        if code != MAKER_LOST or self.model_losses == len(MAKE_AGAIN_S):
            return None
        self.model_losses += 1
        self.model_not_before = now + MAKE_AGAIN_S[self.model_losses - 1]
        return MAKE_AGAIN_S[self.model_losses - 1]

    @property
    def settled(self) -> bool:
        """Return whether nothing of it lives any more."""
        dead = all(engine.state in (EngineState.COLD, EngineState.RETIRED, EngineState.STUCK) for engine in self.engines.values())
        return self.ended and dead and not self.gateway.up and self.gateway.op is None and not self.gateway.dying

    def unfinished(self, now: float, quiet_after: float) -> int:
        return sum(rollout.unfinished(now, quiet_after) for rollout in self.rollouts.values())

    @property
    def steps_left(self) -> int:
        """Return the steps still to finish, this one included; 0 when it has ended or nobody knows."""
        return 0 if self.ended else max(0, self.spec.steps - max(self.step, self.trainer.steps_done))

    @property
    def opened(self) -> float:
        return min((rollout.opened for rollout in self.rollouts.values()), default=0.0)

    @property
    def routable(self) -> bool:
        return any(engine.route == self.published for engine in self.engines.values())


class Fleet:
    """The fleet is every pipeline of the box, with ways to find a group."""

    def __init__(self, box: BoxSpec) -> None:
        self.pipelines = {spec.id: _pipeline(spec, box) for spec in box.pipelines}

    @property
    def engines(self) -> Iterable[Engine]:
        return (engine for pipeline in self.pipelines.values() for engine in pipeline.engines.values())

    def engine(self, id: EngineId) -> Engine:
        return self.pipelines[id.pipeline].engines[id.rank]

    def group(self, id: GroupId) -> Group:
        pipeline = self.pipelines[id.pipeline]
        match id:
            case EngineId(rank=rank):
                return pipeline.engines[rank]
            case TrainerId():
                return pipeline.trainer
            case GatewayId():
                return pipeline.gateway
            case _:
                assert_never(id)

    def state(self, group: GroupId) -> EngineState | None:
        """Return the state of an engine, and None for any other group."""
        return self.engine(group).state if isinstance(group, EngineId) else None


def _pipeline(spec: PipelineSpec, box: BoxSpec) -> Pipeline:
    def budget() -> Budget:
        return Budget(box.limits.restarts, box.limits.restart_window)

    resumed = spec.version > 0 or spec.steps_done > 0
    engines = {rank: Engine(EngineId(spec.id, rank), spec.engine.bundle(rank), spec.engine.slots, budget()) for rank in spec.engine.ranks}
    ranks, processes = spec.trainer.world_size, spec.trainer.processes
    trainer = Trainer(TrainerId(spec.id), ranks, budget(), spec.steps_done, restored=not resumed, processes=processes)
    return Pipeline(spec, engines, trainer, Gateway(GatewayId(spec.id)), Version(spec.version))
