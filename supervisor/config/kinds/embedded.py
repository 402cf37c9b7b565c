"""`kind = "embedded"`: the small engine of our own. It needs no GPU, is one process on one (virtual) GPU, and runs in our own Python."""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from supervisor.config.kinds.kind import Machine, Program
from supervisor.config.schema.findings import Finding, GpuFact, ModelSize
from supervisor.config.schema.rules import DraftPipeline
from supervisor.config.schema.tables import EngineTable

CONTEXT: Final = 64
"""Tokens of prompt and answer together, where the file does not say it."""
MEASURED_ON_VIRTUAL_GPUS: Final = True


def findings(engine: EngineTable, path: str) -> Iterator[Finding]:
    also = (f"{path}.kind",)
    if engine.slots % 4:
        up = engine.slots + -engine.slots % 4
        problem = "is not a multiple of 4, as the embedded engine needs it to compute the same bits whatever runs beside a sample"
        yield Finding(f"{path}.slots", engine.slots, problem, f"Write {up}.", also)
    if engine.tp != 1:
        problem = "is more than 1, but an embedded engine lives on one GPU"
        yield Finding(f"{path}.tp", engine.tp, problem, 'Write tp = 1, or kind = "sglang".', also)
    if engine.members != "one":
        problem = "makes no sense for an embedded engine, which is one process"
        yield Finding(f"{path}.members", engine.members, problem, 'Remove it, or write kind = "sglang".', also)
    if engine.ep != 1:
        problem = "is more than 1, but an embedded engine has no experts"
        yield Finding(f"{path}.ep", engine.ep, problem, 'Remove it, or write kind = "sglang".', also)
    if engine.kv_tokens is not None:
        problem = 'is for kind = "sglang": an embedded engine has slots x context'
        yield Finding(f"{path}.kv_tokens", engine.kv_tokens, problem, "Remove it.", also)
    if engine.args:
        problem = "makes no sense for an embedded engine, whose every argument is ours"
        yield Finding(f"{path}.args", " ".join(engine.args), problem, 'Use slots and context, or write kind = "sglang".', also)
    if engine.context is not None and engine.context < 2:
        yield Finding(f"{path}.context", engine.context, "leaves no room for a prompt and a token", "Write 32 or more.")


def premises(pipeline: DraftPipeline, engine: EngineTable, machine: Machine) -> Iterator[Finding]:
    """It brings everything along."""
    yield from ()


def filled(engine: EngineTable, size: ModelSize | None, context: int | None, gpus: Sequence[GpuFact]) -> EngineTable:
    return replace(engine, context=engine.context or CONTEXT)


def program(engine: EngineTable) -> Program:
    return Program("engines.embedded", own_python=True)


def needs(engine: EngineTable, size: ModelSize) -> int | None:
    """Weights and every slot's longest sequence, in float32."""
    return None if size.kv_token is None else size.weights + size.kv_token * (engine.context or 0) * engine.slots


def refused_parameters(engine: EngineTable) -> tuple[str, ...]:
    return ()


def advice(engine: EngineTable, size: ModelSize) -> str | None:
    return None
