"""The rules say what the types cannot about a configuration. PURE: the GPUs of the host come as an argument.

They work on what could be read of a broken file, too: `Draft` holds the tables that are sound, so that one reading names every mistake.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from supervisor.config.schema.findings import Finding
from supervisor.config.schema.tables import EngineTable, GatewayTable, HostTable, TrainerTable
from supervisor.scheduler.spec import ROLE_PRIORITY
from trainers.protocol.child_env import PREFIX
from trainers.protocol.ids import PipelineId

RESERVED_NAMES: Final = ("supervisor", "latest")
RESERVED_ROLES: Final = ("init", "train", "rollout")
EXTRA_ROLES: Final = tuple(role for role in ROLE_PRIORITY if role not in RESERVED_ROLES)
OUR_VARIABLES: Final = frozenset(
    ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"]
)
_VARIABLE: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*\Z")
ENTRY: Final = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")
_UUID: Final = re.compile(r"^(GPU|MIG)-[0-9A-Za-z/-]{4,80}\Z")


@dataclass(frozen=True, slots=True)
class DraftPipeline:
    """The sound parts of one `[[pipeline]]`. `path` is `pipeline[0]`."""

    path: str
    name: PipelineId | None
    engine: EngineTable | None
    trainer: TrainerTable | None
    gateway: GatewayTable | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """The sound parts of a file. `gpus` is the number of GPUs of the host, None where it could not be found out."""

    host: HostTable | None
    pipelines: tuple[DraftPipeline, ...] = field(default=())
    gpus: int | None = None


def gpu_count(host: HostTable | None) -> int | None:
    """Returns how many GPUs the file itself names; None for "auto"."""
    if host is None:
        return None
    return host.virtual if host.virtual is not None else len(host.gpus) if isinstance(host.gpus, list) else None


KindRules = Callable[[EngineTable, str], Iterator[Finding]]
"""An engine's own kind adds rules (`supervisor.config.kinds`); they get its table and the path of that."""


def findings(draft: Draft, of_kind: KindRules) -> Iterator[Finding]:
    """Yields everything that breaks a rule, in the order of the file."""
    if draft.host is not None:
        yield from _host(draft.host)
    yield from _names(draft.pipelines)
    for pipeline in draft.pipelines:
        if pipeline.engine is not None:
            yield from _engine(pipeline.engine, f"{pipeline.path}.engine", draft.gpus, of_kind)
        if pipeline.trainer is not None:
            yield from _trainer(pipeline.trainer, f"{pipeline.path}.trainer", draft.gpus)
        if pipeline.gateway is not None:
            yield from _gateway(pipeline.gateway, f"{pipeline.path}.gateway")


def _host(host: HostTable) -> Iterator[Finding]:
    if host.gpus is None and host.virtual is None:
        remedy = 'Write gpus = "auto" (every NVIDIA GPU), gpus = [0, 1] (indices or UUIDs), or virtual = 4 on a machine without GPUs.'
        yield Finding("host", "", "says neither `gpus` nor `virtual`", remedy, also=("host.gpus", "host.virtual"))
    if host.gpus is not None and host.virtual is not None:
        yield Finding("host.virtual", host.virtual, "stands beside `gpus`", "Keep one of the two.", also=("host.gpus",))
    if isinstance(host.gpus, list):
        yield from _host_gpus(host.gpus)
    low, high = host.ports
    if not 1024 <= low < high <= 65535:
        remedy = "Give [first, last] within 1024..65535, for example [20000, 29999]."
        yield Finding("host.ports", list(host.ports), "is not a window of ports", remedy)
    elif host.metrics_port is not None and low <= host.metrics_port <= high:
        remedy = f"Choose one outside {low}..{high}, for example 9400."
        yield Finding("host.metrics_port", host.metrics_port, "lies among the ports of engines and gateways", remedy, also=("host.ports",))


def _host_gpus(gpus: Sequence[int | str]) -> Iterator[Finding]:
    key = "host.gpus"
    if not gpus:
        yield Finding(key, [], "is empty", 'Name at least one GPU, or write "auto".')
    if len({type(gpu) for gpu in gpus}) > 1:
        yield Finding(key, list(gpus), "mixes indices and UUIDs", "Use one kind.")
    for position, gpu in enumerate(gpus):
        if isinstance(gpu, int) and gpu < 0:
            yield Finding(f"{key}[{position}]", gpu, "is no GPU index", "Indices count from 0, as nvidia-smi shows them.")
        if isinstance(gpu, str) and not _UUID.match(gpu):
            remedy = "Give an index that nvidia-smi shows (0, 1, …), or a UUID as `nvidia-smi -L` prints it (GPU-… or MIG-…)."
            yield Finding(f"{key}[{position}]", gpu, "is no GPU UUID", remedy)
    yield from _twice(gpus, key)


def _names(pipelines: Sequence[DraftPipeline]) -> Iterator[Finding]:
    seen: set[str] = set()
    for pipeline in pipelines:
        if pipeline.name is None:
            continue
        key = f"{pipeline.path}.name"
        if pipeline.name in RESERVED_NAMES:
            yield Finding(key, pipeline.name, "is a reserved name", "Choose another name.")
        if pipeline.name in seen:
            yield Finding(key, pipeline.name, "is already the name of another pipeline", "Names of pipelines are unique: choose another.")
        seen.add(pipeline.name)


def _engine(engine: EngineTable, path: str, gpus: int | None, of_kind: KindRules) -> Iterator[Finding]:
    key = f"{path}.gpus"
    yield from _gpu_list(engine.gpus, key, gpus)
    if engine.gpus and len(engine.gpus) % engine.tp:
        lower = len(engine.gpus) - len(engine.gpus) % engine.tp
        remedy = f"Name {lower} or {lower + engine.tp} GPUs, or change tp." if lower else f"Name {engine.tp} GPUs, or lower tp."
        problem = f"{len(engine.gpus)} GPUs do not divide into bundles of tp = {engine.tp}"
        yield Finding(key, engine.gpus, problem, remedy, also=(f"{path}.tp",))
    yield from of_kind(engine, path)
    if not isinstance(engine.model, str) and not ENTRY.match(engine.model.make):
        remedy = 'Write it like "trainers.grpo.tiny:make".'
        yield Finding(f"{path}.model.make", engine.model.make, "is not of the form module:function", remedy)
    if engine.model == "":
        yield Finding(f"{path}.model", "", "is empty", 'Give a folder with a Hugging Face model, or a recipe { make = "module:function" }.')
    yield from _environment(engine.env, engine.pass_env, path)


def _trainer(trainer: TrainerTable, path: str, gpus: int | None) -> Iterator[Finding]:
    yield from _gpu_list(trainer.gpus, f"{path}.gpus", gpus)
    both = (f"{path}.command", f"{path}.entry")
    if trainer.command is None and trainer.entry is None:
        remedy = 'Write entry = "trainers.grpo:main" (the built-in trainer) or command = ["python", "train.py"].'
        yield Finding(path, "", "says neither `command` nor `entry`", remedy, also=both)
    if trainer.command is not None and trainer.entry is not None:
        yield Finding(both[1], trainer.entry, "stands beside `command`", "Keep one of the two.", also=both)
    if trainer.command is not None and not (trainer.command and trainer.command[0]):
        yield Finding(both[0], trainer.command, "names no program", 'Write the program and its arguments: ["python", "train.py"].')
    if trainer.entry is not None and not ENTRY.match(trainer.entry):
        yield Finding(both[1], trainer.entry, "is not of the form module:function", 'Write it like "trainers.grpo:main".')
    if trainer.entry is not None and trainer.processes == "one":
        remedy = 'Write the launcher as a `command` (["torchrun", "train.py"]), or leave `processes` out.'
        yield Finding(
            f"{path}.processes", trainer.processes, "is for a `command`: an `entry` is a function that each rank runs", remedy, also=both
        )
    for role, wanted in trainer.roles.items():
        key = f"{path}.roles.{role}"
        if role in RESERVED_ROLES:
            remedy = "Remove it: `init` and `train` use the trainer's `gpus`, `rollout` belongs to the engines."
            yield Finding(key, wanted, "is a reserved role", remedy)
        elif role not in EXTRA_ROLES:
            close = difflib.get_close_matches(role[:64], EXTRA_ROLES, n=1)
            remedy = f"Did you mean `{close[0]}`?" if close else f"Known roles: {', '.join(EXTRA_ROLES)}."
            yield Finding(key, wanted, "is not a role", remedy)
        yield from _gpu_list(wanted, key, gpus)
    yield from _environment(trainer.env, trainer.pass_env, path)


def _gateway(gateway: GatewayTable, path: str) -> Iterator[Finding]:
    if gateway.max_version_lag is not None and gateway.on_publish == "restart":
        key, problem = f"{path}.max_version_lag", 'has no meaning beside on_publish = "restart", which lets nothing lag behind at all'
        yield Finding(key, gateway.max_version_lag, problem, "Keep one of the two.", also=(f"{path}.on_publish",))
    if gateway.prefix_slack != GatewayTable().prefix_slack and not gateway.prefix_affinity:
        problem = "has no meaning without prefix_affinity = true"
        yield Finding(
            f"{path}.prefix_slack", gateway.prefix_slack, problem, "Switch it on, or remove this.", also=(f"{path}.prefix_affinity",)
        )


def _gpu_list(wanted: Sequence[int], key: str, gpus: int | None) -> Iterator[Finding]:
    if not wanted:
        yield Finding(key, [], "is empty", "Name at least one GPU by its position in the host's list, counted from 0.")
    missing = [gpu for gpu in wanted if gpu < 0 or (gpus is not None and gpu >= gpus)]
    if missing:
        problem = f"GPU {missing[0]} is not there" if len(missing) == 1 else f"GPUs {str(missing[:8])[1:-1]} are not there"
        have = {None: "Positions count from 0.", 0: "The host has no GPU.", 1: "The host has one GPU: 0."}
        yield Finding(key, list(wanted), problem, have.get(gpus, f"The host has GPUs 0 to {(gpus or 0) - 1}."))
    yield from _twice(wanted, key)


def _twice(wanted: Sequence[int | str], key: str) -> Iterator[Finding]:
    seen: set[int | str] = set()
    for gpu in wanted:
        if gpu in seen:
            yield Finding(key, list(wanted), f"GPU {gpu} is named twice", "Name each GPU once.")
            return
        seen.add(gpu)


def _environment(env: dict[str, str], patterns: Sequence[str], path: str) -> Iterator[Finding]:
    for name in env:
        if not _VARIABLE.match(name):
            yield Finding(f"{path}.env", name, "is no name of an environment variable", "Use letters, digits and underscores.")
        elif name in OUR_VARIABLES or name.startswith(PREFIX):
            yield Finding(f"{path}.env.{name}", env[name], "is set by the supervisor for every child", "Remove it.")
    for position, pattern in enumerate(patterns):
        if not pattern or not re.fullmatch(r"[A-Za-z0-9_*?\[\]!-]+", pattern):
            yield Finding(f"{path}.pass_env[{position}]", pattern, "is no pattern of variable names", 'Write it like "WANDB_*".')
