"""What a file leaves out and the model or the machine says: how long a sequence may be, how large the KV pool is. Looks at no clock and no GPU."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from supervisor.config.machine.model_files import ModelSize
from supervisor.config.schema.findings import GpuFact
from supervisor.config.schema.tables import EngineTable

EMBEDDED_CONTEXT: Final = 64
STATIC_SHARE: Final = 0.75
"""Of a GPU's memory, for weights and KV pool where nobody has said how large the pool shall be; the rest is for graphs, activations and sleepers."""


def filled(engine: EngineTable, size: ModelSize | None, context: int | None, gpus: Sequence[GpuFact]) -> EngineTable:
    """`context` is what the model was made for; `gpus` those of the host, empty where they were not looked up. A missing context of an
    SGLang engine whose model does not say it stays missing: `premises` refuses that."""
    if engine.kind == "embedded":
        return replace(engine, context=engine.context or EMBEDDED_CONTEXT)
    tokens = engine.context or (min(context, engine.kv_tokens) if context and engine.kv_tokens else context)
    if tokens is None or engine.kv_tokens is not None:
        return replace(engine, context=tokens)
    return replace(engine, context=tokens, kv_tokens=_pool(engine, size, tokens, gpus))


def _pool(engine: EngineTable, size: ModelSize | None, context: int, gpus: Sequence[GpuFact]) -> int:
    """Room for every slot's longest sequence, or what the smallest GPU holds beside the weights; one sequence at least. It hangs on
    no other process, so that it is the same at every start."""
    wanted = engine.slots * context
    mine = [gpus[gpu].total_bytes for gpu in engine.gpus if gpu < len(gpus)]
    known = [total for total in mine if total is not None]
    if size is None or not size.kv_token or not known or len(known) < len(mine):
        return wanted
    room = int(min(known) * STATIC_SHARE) * engine.tp - size.weights
    return max(context, min(wanted, room // (size.kv_token // 2)))  # as 16 bits, SGLang's default
