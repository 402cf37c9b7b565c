"""`kind = "sglang"`: SGLang's server, from an environment of its own, on one GPU or several."""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from engines.lifecycle.members import MOST_MEMBERS
from engines.sglang.command import SOCKET_ROOM, quantising, refused
from engines.sglang.versions import UnknownVersion, profile
from supervisor.config.kinds.kind import Cuda, Machine, Program
from supervisor.config.schema.findings import Finding, GpuFact, ModelSize
from supervisor.config.schema.rules import DraftPipeline
from supervisor.config.schema.tables import EngineTable

STATIC_SHARE: Final = 0.75
"""Weights and KV pool take this share of a GPU's memory where the file does not size the pool; the rest is for graphs, activations and sleepers."""
MEASURED_ON_VIRTUAL_GPUS: Final = False


def findings(engine: EngineTable, path: str) -> Iterator[Finding]:
    kind = f"{path}.kind"
    if engine.python is None:
        remedy = 'Name the interpreter of SGLang\'s own environment, for example python = "/opt/sglang/bin/python".'
        yield Finding(f"{path}.python", "", 'is missing, and kind = "sglang" needs it', remedy, (kind,))
    if flags := refused(engine.args):
        them = "it" if len(flags) == 1 else "them"
        remedy = (
            f"Remove {them}: the supervisor sets {them} (size of the group: `tp`, `ep`; more engines: more `gpus`; seeds: `deterministic`)."
        )
        yield Finding(f"{path}.args", " ".join(flags), "may not be set by hand", remedy, (kind,))
    if flags := quantising(engine.args):
        problem = "quantises the weights, whose memory could then not be given back when the engine sleeps"
        yield Finding(f"{path}.args", " ".join(flags), problem, "Remove it: rollouts in 16 bits sleep, wake and load in place.", (kind,))
    if engine.kv_tokens is not None and engine.context is not None and engine.kv_tokens < engine.context:
        problem = f"has no room for one sequence of context = {engine.context} tokens"
        yield Finding(f"{path}.kv_tokens", engine.kv_tokens, problem, f"Write {engine.context} or more.", (f"{path}.context",))
    if engine.tp % engine.ep:
        fitting = ", ".join(str(size) for size in range(1, engine.tp + 1) if engine.tp % size == 0)
        problem = f"does not divide tp = {engine.tp}: experts are spread over the GPUs of one engine"
        yield Finding(f"{path}.ep", engine.ep, problem, f"Write one of {fitting}.", (f"{path}.tp",))
    if engine.members == "per-gpu" and engine.tp > MOST_MEMBERS:
        problem = f"means {engine.tp} processes for one engine; its window of ports has room for {MOST_MEMBERS}"
        yield Finding(f"{path}.members", engine.members, problem, 'Lower tp, or write members = "one".', (f"{path}.tp",))


def premises(pipeline: DraftPipeline, engine: EngineTable, machine: Machine) -> Iterator[Finding]:
    path = f"{pipeline.path}.engine"
    if engine.context is None:
        yield from _context(engine, f"{path}.context", machine)
    yield from _sockets(pipeline, machine)
    if isinstance(engine.model, str) and (model := machine.model(engine)) is not None and model.quantised is not None:
        problem = f"is quantised ({model.quantised}): weights that a trainer publishes are not, and a load would leave memory behind"
        yield Finding(f"{path}.model", engine.model, problem, "Name the model in 16 bits that it was made from.")
    if engine.python is not None:
        yield from _interpreter(engine.python, f"{path}.python", machine)


def _context(engine: EngineTable, key: str, machine: Machine) -> Iterator[Finding]:
    """The model must say how long a sequence may be where the file does not."""
    remedy = "Write the tokens of prompt and answer together, for example context = 8192."
    if not isinstance(engine.model, str):
        yield Finding(key, "", "is missing, and the model, which is made when the run starts, cannot say it yet", remedy)
    elif (model := machine.model(engine)) is not None and model.context is None:
        yield Finding(key, "", f"is missing, and {model.folder}/config.json does not say what the model was made for", remedy)


def _sockets(pipeline: DraftPipeline, machine: Machine) -> Iterator[Finding]:
    """SGLang makes Unix sockets in a folder of each engine's own below `shm` (`supervisor.runtime`), whose path has a limit."""
    if (shm := machine.longest_shm()) is None:
        return
    longest = f"{shm}/.tmp/{pipeline.name or ''}.99.999"
    if (excess := len(longest.encode("utf-8", "surrogateescape")) - SOCKET_ROOM) > 0:
        problem = f"makes a path that is {excess} bytes too long for SGLang's sockets ({longest})"
        remedy = "Shorten it, the name of this file, or [host] shm."
        yield Finding(f"{pipeline.path}.name", pipeline.name or "", problem, remedy, ("host.shm",))


def _interpreter(python: str, key: str, machine: Machine) -> Iterator[Finding]:
    """An engine must be able to start with the interpreter. One that takes too long to answer is believed."""
    version, problem = machine.installed(python, "sglang", "SGLang")
    if problem:
        yield Finding(key, python, problem, "Name the interpreter of an environment that has it: `pip install sglang` there.")
    if version is None:
        return
    try:
        profile(version)
    except UnknownVersion as error:
        yield Finding(key, python, error.problem, f"{error.remedy[0].upper()}{error.remedy[1:]}.")
        return
    if (cuda := machine.cuda(python)) is not None:
        yield from _cuda(cuda, python, key)


def _cuda(cuda: Cuda, python: str, key: str) -> Iterator[Finding]:
    """What an engine would die of minutes later, or at once with exit code 127."""
    if cuda.needed is not None and cuda.driver is not None and cuda.needed * 1000 > cuda.driver:
        problem = (
            f"is built for CUDA {cuda.needed}, and the driver of this machine runs {cuda.driver // 1000}.{cuda.driver % 1000 // 10} at most"
        )
        needs = "; CUDA 13 needs 580 or newer" if cuda.needed == 13 else ""
        yield Finding(key, python, problem, f"Update the driver{needs}, or install SGLang and torch with wheels for the driver's CUDA.")
    elif cuda.preload_problem is not None:
        problem = f"cannot preload SGLang's memory saver ({cuda.preload_problem}): without it no engine can sleep"
        yield Finding(key, python, problem, "`pip install torch_memory_saver` there, and nvidia-cuda-runtime of the version that it names.")


def filled(engine: EngineTable, size: ModelSize | None, context: int | None, gpus: Sequence[GpuFact]) -> EngineTable:
    """A missing context is what the model was made for, cut to the KV pool that the file asks for; where the model does not say it either,
    it stays missing, and `premises` refuses that."""
    tokens = engine.context or (min(context, engine.kv_tokens) if context and engine.kv_tokens else context)
    if tokens is None or engine.kv_tokens is not None:
        return replace(engine, context=tokens)
    return replace(engine, context=tokens, kv_tokens=_pool_tokens(engine, size, tokens, gpus))


def _pool_tokens(engine: EngineTable, size: ModelSize | None, context: int, gpus: Sequence[GpuFact]) -> int:
    """Room for every slot's longest sequence, or what the smallest GPU holds beside the weights; one sequence at least. It depends on
    no other process, so that it is the same at every start."""
    wanted = engine.slots * context
    mine = [gpus[gpu].total_bytes for gpu in engine.gpus if gpu < len(gpus)]
    known = [total for total in mine if total is not None]
    if size is None or not size.kv_token or not known or len(known) < len(mine):
        return wanted
    room = int(min(known) * STATIC_SHARE) * engine.tp - size.weights
    return max(context, min(wanted, room // (size.kv_token // 2)))  # as 16 bits, SGLang's default


def program(engine: EngineTable) -> Program:
    return Program(f"{engine.python} -m sglang.launch_server", own_python=False)


def needs(engine: EngineTable, size: ModelSize) -> int | None:
    return (size.weights + _pool_bytes(engine, size)) // engine.tp


def _pool_bytes(engine: EngineTable, size: ModelSize) -> int:
    """Bytes of the KV pool, over all GPUs of an engine; 0 where they are not known."""
    return (engine.kv_tokens or (engine.context or 0) * engine.slots) * (size.kv_token or 0) // 2  # as 16 bits, SGLang's default


def refused_parameters(engine: EngineTable) -> tuple[str, ...]:
    """SGLang (0.5.23) asserts, and so dies, where a seeded sample has a `min_p`."""
    return ("min_p",) if engine.deterministic else ()


def advice(engine: EngineTable, size: ModelSize) -> str | None:
    if (pool := _pool_bytes(engine, size)) <= size.weights:
        return None
    tokens = f"{engine.kv_tokens} tokens, {pool / engine.tp / 2**30:.1f} GiB on each GPU"
    return f"its KV pool ({tokens}) is larger than the weights: lower kv_tokens, slots or context."
