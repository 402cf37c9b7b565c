"""This module draws the picture of a sound configuration: who may hold which GPU, and whether it fits. `supervisor.views.check` prints it,
and gives it what was looked up.

Numbers are lower bounds from what is known without starting anything. What is not known is None and shown as `unmeasured`,
never guessed.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from supervisor.config.child_environment import choose
from supervisor.config.kinds.registry import kind_of
from supervisor.config.schema.findings import GpuFact, ModelSize
from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.scheduler.spec import ROLE_PRIORITY, Priority
from trainers.protocol.child_env import OUTER_PYTHONPATH, PREFIX
from trainers.protocol.ids import EngineId, GpuId, PipelineId

MIB = 1 << 20
SNAPSHOTS = 3
"""One pipeline has at most so many copies of its weights in shared memory: one being written, one published, one being loaded."""
TRAINING_BYTES = 4
"""Float32 weights, gradients and two moments of Adam: this many times the weights' float32 bytes, shared by the ranks."""

CONTEXT: Final = 460 * MIB
"""Whoever lives beside the holder of a GPU has a CUDA context there at least: 0.45 to 0.61 GiB with CUDA 13."""
SMALL_SHM: Final = 1 << 30
"""Ranks on several GPUs hand each other data through shared memory as well (NCCL, gloo), beside the weights."""

Verdict = Literal["fits", "does not fit", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the box has: bytes that are free, and our environment. None stands for what could not be found out."""

    gpus: tuple[GpuFact, ...]
    memory_free: int | None
    shm_free: int | None
    environ: Mapping[str, str]
    shm_total: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim is one holder's right to a GPU in one role. `needs` is a lower bound of device bytes on that GPU while it is held."""

    pipeline: PipelineId
    holder: str
    role: str
    priority: Priority
    needs: int | None


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """One GPU. `needs` is its largest claim plus a context of everybody else who lives there; None when no claim is known."""

    gpu: GpuFact
    claims: tuple[Claim, ...]
    needs: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Room:
    """One resource of the host."""

    what: str
    needs: int | None
    has: int | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Variables:
    """These children (all alike) see these variables of our environment, and not those that are dropped; by name."""

    children: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Processes that are alike. `program` is what they run: a command line with the program's whole path, or a function of our own Python's."""

    who: str
    count: int
    gpus_each: int
    program: str
    own_python: bool
    slots: int | None = None
    context: int | None = None
    kv_tokens: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    parts: tuple[Part, ...]
    gpus: tuple[GpuPlan, ...]
    rooms: tuple[Room, ...]
    ports: tuple[int, int]
    variables: tuple[Variables, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """False only where it is known not to fit."""
        verdicts = [gpu.verdict for gpu in self.gpus] + [room.verdict for room in self.rooms]
        return "does not fit" not in verdicts


def picture(config: Config, machine: Machine, sizes: Mapping[str, ModelSize | None]) -> Picture:
    """`sizes` gives the model of each pipeline by the pipeline's name, None where it is not known."""
    gpus = tuple(_gpu(gpu, config, sizes) for gpu in machine.gpus)
    variables = tuple(_variables(config, machine.environ))
    parts = tuple(part for pipeline in config.pipeline for part in _parts(pipeline))
    notes = (*_notes(config, machine), *_advice(config, gpus, sizes))
    return Picture(parts, gpus, tuple(_rooms(config, machine, sizes)), config.host.ports, variables, notes)


def _parts(pipeline: PipelineTable) -> Iterator[Part]:
    engine, trainer = pipeline.engine, pipeline.trainer
    program = kind_of(engine).program(engine)
    count = len(engine.gpus) // engine.tp
    yield Part(
        f"{pipeline.name}/engine", count, engine.tp, program.text, program.own_python, engine.slots, engine.context, engine.kv_tokens
    )
    command = trainer.entry or shlex.join(trainer.command or ())
    processes = 1 if trainer.processes == "one" else len(trainer.gpus)
    yield Part(f"{pipeline.name}/trainer", processes, 1, command, trainer.entry is not None, steps=trainer.steps)


def verdict(needs: int | None, has: int | None) -> Verdict:
    if needs is None or has is None:
        return "unmeasured"
    return "fits" if needs <= has else "does not fit"


def _gpu(gpu: GpuFact, config: Config, sizes: Mapping[str, ModelSize | None]) -> GpuPlan:
    claims = tuple(claim for pipeline in config.pipeline for claim in _claims(pipeline, gpu.id, sizes.get(pipeline.name)))
    known = [claim.needs for claim in claims if claim.needs is not None]
    beside = max(0, len({claim.holder for claim in claims}) - 1) if gpu.total_bytes is not None else 0
    needs = max(known) + beside * CONTEXT if known and len(known) == len(claims) else None
    return GpuPlan(gpu, claims, needs, verdict(needs, gpu.total_bytes) if claims else "fits")


def _claims(pipeline: PipelineTable, gpu: GpuId, size: ModelSize | None) -> Iterator[Claim]:
    """Yields who of this pipeline may hold the GPU, the highest priority first."""
    name = PipelineId(pipeline.name)
    trainer, engine = pipeline.trainer, pipeline.engine
    share = size.weights * TRAINING_BYTES // len(trainer.gpus) if size is not None and trainer.entry is not None else None
    roles = {"train": trainer.gpus, **trainer.roles}
    for role, gpus in sorted(roles.items(), key=lambda item: ROLE_PRIORITY[item[0]]):
        if gpu in gpus:
            yield Claim(name, f"{name}/trainer", role, ROLE_PRIORITY[role], share if role == "train" else None)
    if gpu in engine.gpus:
        rank = engine.gpus.index(gpu) // engine.tp
        yield Claim(
            name, str(EngineId(name, rank)), "rollout", Priority.ROLLOUT, None if size is None else kind_of(engine).needs(engine, size)
        )


def _advice(config: Config, gpus: Sequence[GpuPlan], sizes: Mapping[str, ModelSize | None]) -> Iterator[str]:
    """Yields what to change where engines do not fit, as far as their kind knows it."""
    for pipeline in config.pipeline:
        size, engine = sizes.get(pipeline.name), pipeline.engine
        tight = any(plan.verdict == "does not fit" and plan.gpu.id in engine.gpus for plan in gpus)
        if tight and size is not None and (advice := kind_of(engine).advice(engine, size)) is not None:
            yield f"{pipeline.name}: {advice}"


def _rooms(config: Config, machine: Machine, sizes: Mapping[str, ModelSize | None]) -> Iterator[Room]:
    known = [sizes.get(pipeline.name) for pipeline in config.pipeline]
    weights = None if any(size is None for size in known) else [size.weights for size in known if size is not None]
    shm = None if weights is None else SNAPSHOTS * sum(weights)
    yield Room(f"shared memory ({config.host.shm})", shm, machine.shm_free, verdict(shm, machine.shm_free))
    host = None
    if weights is not None:
        engines = [len(pipeline.engine.gpus) // pipeline.engine.tp for pipeline in config.pipeline]
        asleep = sum(size * count for size, count in zip(weights, engines, strict=True))
        host = asleep + TRAINING_BYTES * sum(weights) + (shm or 0)
    yield Room("host memory", host, machine.memory_free, verdict(host, machine.memory_free))


def _variables(config: Config, environ: Mapping[str, str]) -> Iterator[Variables]:
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for pipeline in config.pipeline:
        engine, trainer = pipeline.engine, pipeline.trainer
        for child, chosen in (
            (f"{pipeline.name}/engine", choose("engine", environ, engine.pass_env, engine.env)),
            (f"{pipeline.name}/trainer", choose("trainer", environ, trainer.pass_env, trainer.env)),
        ):
            alike.setdefault((tuple(sorted(chosen.kept)), chosen.dropped), []).append(child)
    for (kept, dropped), children in alike.items():
        yield Variables(tuple(children), kept, tuple(name for name in dropped if not name.startswith(PREFIX)))


def _notes(config: Config, machine: Machine) -> Iterator[str]:
    for pipeline in config.pipeline:
        if not isinstance(pipeline.engine.model, str):
            yield f"{pipeline.name}: its model is made when the run starts, so its size is not known yet."
        if config.host.virtual is not None and not kind_of(pipeline.engine).MEASURED_ON_VIRTUAL_GPUS:
            yield f"{pipeline.name}: engines of kind {pipeline.engine.kind} are unmeasured on virtual GPUs; no promise about their memory is made."
        if config.host.virtual is not None and pipeline.trainer.command is not None:
            yield f"{pipeline.name}: memory of the trainer's command is unmeasured on virtual GPUs, unless it uses trainshed.virtual_gpu."
        if len({*pipeline.trainer.gpus} & {*pipeline.engine.gpus}) == len({*pipeline.engine.gpus}):
            yield f"{pipeline.name}: trains on every GPU that its engines have, so it never rolls out while it trains."
    if machine.shm_total is not None and any(gpu.total_bytes is not None for gpu in machine.gpus):
        several = any(pipeline.engine.tp > 1 or len(pipeline.trainer.gpus) > 1 for pipeline in config.pipeline)
        if machine.shm_total < SMALL_SHM and (several or config.host.shm.startswith("/dev/shm")):
            size = f"{machine.shm_total / MIB:.0f} MiB"
            yield f"{config.host.shm} has {size} in all: weights and NCCL need more. In docker, `--shm-size=32g` or `--ipc=host`; or another [host] shm."
    unused = [gpu.id for gpu in machine.gpus if not any(gpu.id in _wanted(pipeline) for pipeline in config.pipeline)]
    if unused:
        yield f"GPUs that nobody may hold: {', '.join(map(str, unused))}."
    outer = machine.environ.get(OUTER_PYTHONPATH)
    for pipeline in config.pipeline:
        if outer and pipeline.trainer.command is not None and "PYTHONPATH" not in pipeline.trainer.env:
            remedy = 'what its trainer needs of it goes into its table: env = { PYTHONPATH = "…" }'
            yield f"{pipeline.name}: PYTHONPATH of this shell ({outer}) is not passed on; {remedy}."


def _wanted(pipeline: PipelineTable) -> Sequence[int]:
    return [*pipeline.engine.gpus, *pipeline.trainer.gpus, *(gpu for gpus in pipeline.trainer.roles.values() for gpu in gpus)]
