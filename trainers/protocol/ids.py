"""This module defines the ids of what lives and dies, and the one spelling of each: as text, as a log file, as a tag.

Inside the program an id is a value and is never made from a string. Text becomes an id where an operator types one (`parse`) and where a
folder is read back (`parse_log_name`); a pipeline's name is lower-case letters, digits, `_` and `-`, 32 at most, a letter first.

    id                        text            log file
    PipelineId("p1")          p1              p1.model.log (of the program that makes its model)
    EngineId("p1", 0)         p1/engine/0     p1.engine.0.log, of the bundle's follower 1: p1.engine.0.1.log
    TrainerId("p1")           p1/trainer      p1.trainer.0.log, one a rank
    GatewayId("p1")           p1/gateway      p1.gateway.log
"""

import re
from typing import Final, NewType

import msgspec

PipelineId = NewType("PipelineId", str)
GpuId = NewType("GpuId", int)
"""Position of a GPU in the host's list (`[host] gpus`), 0-based; never a CUDA index."""
Incarnation = NewType("Incarnation", int)
"""The number of a group's life that an answer belongs to. It advances when the group *exits*, so a late answer from the dead is seen as such."""
Version = NewType("Version", int)
"""Weight version of a pipeline, issued by the supervisor; 0 is the model path itself."""
EVALUATIONS: Final = 10**14
"""Rollouts with this number or a higher one are evaluations: they have a space of numbers, and so of seeds, beside the trainer's steps."""


class EngineId(msgspec.Struct, frozen=True, order=True, tag="engine", tag_field="group"):
    """One model replica: dp rank `rank` of a pipeline, on `gpus[rank*tp:(rank+1)*tp]`."""

    pipeline: PipelineId
    rank: int

    def __str__(self) -> str:
        return f"{self.pipeline}/engine/{self.rank}"


class TrainerId(msgspec.Struct, frozen=True, order=True, tag="trainer", tag_field="group"):
    """The rank processes of one pipeline's trainer."""

    pipeline: PipelineId

    def __str__(self) -> str:
        return f"{self.pipeline}/trainer"


class GatewayId(msgspec.Struct, frozen=True, order=True, tag="gateway", tag_field="group"):
    """The HTTP front of one pipeline."""

    pipeline: PipelineId

    def __str__(self) -> str:
        return f"{self.pipeline}/gateway"


GroupId = EngineId | TrainerId | GatewayId

_PIPELINE: Final = r"(?P<pipeline>[a-z][a-z0-9_-]{0,31})"
_NUMBER: Final = "[0-9]{1,6}"
_TEXT: Final = re.compile(rf"^{_PIPELINE}(?:/(?:engine/(?P<rank>{_NUMBER})|(?P<kind>trainer|gateway)))?\Z")
_LOG: Final = re.compile(
    rf"^{_PIPELINE}\.(?:(?P<kind>model|gateway)|trainer\.(?P<trainer>{_NUMBER})|engine\.(?P<engine>{_NUMBER})(?:\.(?P<member>{_NUMBER}))?)\.log\Z"
)


def parse(text: str) -> GroupId | PipelineId | None:
    """Return the id that an operator has typed (`p1`, `p1/engine/0`, `p1/trainer`, `p1/gateway`); None for anything else."""
    found = _TEXT.match(text)
    if found is None:
        return None
    pipeline = PipelineId(found["pipeline"])
    if found["rank"] is not None:
        return EngineId(pipeline, int(found["rank"]))
    match found["kind"]:
        case "trainer":
            return TrainerId(pipeline)
        case "gateway":
            return GatewayId(pipeline)
    return pipeline


# ---- log files


class LogName(msgspec.Struct, frozen=True):
    """Whose lines a child's log file has. `kind`: engine, trainer, gateway or model; `rank`: an engine's dp rank, or a trainer's rank."""

    pipeline: PipelineId
    kind: str
    rank: int | None = None
    member: int | None = None


def log_name(group: GroupId, member: int | None = None) -> str:
    """Return the name of a child's log file. `member`: a trainer's rank, or the place of an engine's process in its bundle (0: the head)."""
    match group:
        case EngineId(pipeline=pipeline, rank=rank):
            return f"{pipeline}.engine.{rank}.log" if not member else f"{pipeline}.engine.{rank}.{member}.log"
        case TrainerId(pipeline=pipeline):
            return f"{pipeline}.trainer.{member or 0}.log"
        case GatewayId(pipeline=pipeline):
            return f"{pipeline}.gateway.log"


def model_log_name(pipeline: PipelineId) -> str:
    """Return the name of the log file of the program that makes the pipeline's model."""
    return f"{pipeline}.model.log"


def parse_log_name(file: str) -> LogName | None:
    """Return whose log file it is; None when it is none of a pipeline's."""
    match = _LOG.match(file)
    if match is None:
        return None
    engine, trainer, member = (None if match[name] is None else int(match[name]) for name in ("engine", "trainer", "member"))
    kind = match["kind"] or ("engine" if engine is not None else "trainer")
    return LogName(PipelineId(match["pipeline"]), kind, trainer if engine is None else engine, member)


def tag(run: str, group: GroupId, incarnation: Incarnation) -> str:
    """Return what the environment of this life's processes shows (`TRAINSHED_TAG`), so that a lost one can be recognised."""
    return f"{run}:{group}:{incarnation}"
