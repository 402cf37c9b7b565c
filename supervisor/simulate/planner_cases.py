"""A planner case is a single decision: what the planner answers to a box in a given state. docs/simulation.md has its JSON form, one a line."""

from collections.abc import Iterable, Iterator

import msgspec

from supervisor.errors import UsageError
from supervisor.scheduler.planning.planner import Bundle, Share, View, plan
from trainers.protocol.ids import EngineId, GpuId, PipelineId


class CasePipeline(msgspec.Struct, frozen=True):
    """One pipeline of a case. `active`: dp ranks awake now. `open`: it has a rollout open; then `remaining` samples are unfinished."""

    id: str
    tp: int
    mapping: tuple[int, ...]
    remaining: int
    active: tuple[int, ...] = ()
    open: bool = True
    target: int = 0
    pending: bool = False
    opened: float = 0.0

    @property
    def wants(self) -> bool:
        return self.open and self.remaining > 0

    def bundle(self, rank: int) -> tuple[int, ...]:
        return self.mapping[rank * self.tp : (rank + 1) * self.tp]

    @property
    def ranks(self) -> range:
        return range(len(self.mapping) // self.tp)


class Case(msgspec.Struct, frozen=True):
    """A case has GPUs 0 to `gpus` - 1; `reserved` belong to trainers, `idle` to nobody."""

    gpus: int
    pipelines: tuple[CasePipeline, ...]
    reserved: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()
    targets: str = "oldest-first"


class Answer(msgspec.Struct, frozen=True):
    """The planner's answer: dp ranks to wake and to pause, by pipeline, and the GPUs that nobody holds afterwards."""

    expand: dict[str, list[int]]
    shrink: dict[str, list[int]]
    idle: list[int]


def answers(lines: Iterable[bytes]) -> Iterator[Answer]:
    """Answer each case, in order. Raises UsageError naming the line."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                case = msgspec.json.decode(line, type=Case)
                _check(case)
            except (msgspec.DecodeError, ValueError) as error:
                raise UsageError(f"line {number} is not a case: {error}") from error
            yield answer(case)


def _check(case: Case) -> None:
    held: set[int] = set(case.reserved)
    for pipeline in case.pipelines:
        if pipeline.tp < 1 or len(pipeline.mapping) % pipeline.tp or len(set(pipeline.mapping)) < len(pipeline.mapping):
            raise ValueError(f"{pipeline.id}: mapping must be different GPUs, a multiple of tp = {pipeline.tp}")
        if any(not 0 <= gpu < case.gpus for gpu in pipeline.mapping):
            raise ValueError(f"{pipeline.id}: GPUs are 0 to {case.gpus - 1}")
        for rank in pipeline.active:
            if rank not in pipeline.ranks:
                raise ValueError(f"{pipeline.id}: no dp rank {rank}")
            if not held.isdisjoint(pipeline.bundle(rank)):
                raise ValueError(f"{pipeline.id}: dp rank {rank} is active on a GPU that somebody else has")
            held.update(pipeline.bundle(rank))


def answer(case: Case) -> Answer:
    """Answer one case.

    Every engine of a pipeline with unfinished samples can be filled. An engine whose pipeline has no work pauses when anybody has some.
    """
    gpus = frozenset(GpuId(gpu) for gpu in range(case.gpus)) - frozenset(map(GpuId, case.reserved))
    shares = tuple(_share(pipeline) for pipeline in case.pipelines if pipeline.wants)
    wanted = plan(View(gpus, shares, case.targets))
    owner = {gpu: id for id in wanted for gpu in _bundle(case, id)}
    expand: dict[str, list[int]] = {}
    shrink: dict[str, list[int]] = {}
    held = set(case.reserved)
    for pipeline in case.pipelines:
        for rank in pipeline.ranks:
            chosen = EngineId(PipelineId(pipeline.id), rank) in wanted
            awake = rank in pipeline.active
            in_the_way = any(gpu in owner for gpu in pipeline.bundle(rank)) or (not pipeline.wants and bool(shares))
            if chosen and not awake:
                expand.setdefault(pipeline.id, []).append(rank)
            elif awake and not chosen and in_the_way:
                shrink.setdefault(pipeline.id, []).append(rank)
            if chosen or (awake and not in_the_way):
                held.update(pipeline.bundle(rank))
    return Answer(expand, shrink, sorted(set(range(case.gpus)) - held))


def _share(pipeline: CasePipeline) -> Share:
    bundles = tuple(Bundle(rank, frozenset(map(GpuId, pipeline.bundle(rank))), rank in pipeline.active) for rank in pipeline.ranks)
    return Share(PipelineId(pipeline.id), max(pipeline.remaining, len(bundles)), 1, pipeline.opened, bundles)


def _bundle(case: Case, id: EngineId) -> tuple[int, ...]:
    return next(pipeline for pipeline in case.pipelines if pipeline.id == id.pipeline).bundle(id.rank)
