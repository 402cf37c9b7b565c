"""What the machine must have for a configuration: paths, interpreters, modules, ports. Looks, and changes nothing.

Paths of the file are taken from the file's own folder, so that a configuration means the same from everywhere.
"""

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from engines.launch import WINDOW
from supervisor.config import Config, Engine, Host, Pipeline, Trainer
from supervisor.configuration import hub
from supervisor.configuration.facts import Finding
from supervisor.configuration.rules import ENTRY, Draft

CHECKOUT: Final = Path(__file__).resolve().parent.parent.parent
_PORTS_PER_ENGINE: Final = {"embedded": 1, "sglang": WINDOW}


def findings(draft: Draft, base: Path, ports_given: bool) -> Iterator[Finding]:
    """What is not there. `base` is the folder of the configuration file; `ports_given` whether `[host] ports` is the operator's."""
    if draft.host is not None:
        yield from _host(draft.host, base)
        yield from _ports(draft.host, draft, ports_given)
    for pipeline in draft.pipelines:
        if pipeline.engine is not None:
            yield from _engine(pipeline.engine, f"{pipeline.path}.engine", base)
        if pipeline.trainer is not None:
            yield from _trainer(pipeline.trainer, f"{pipeline.path}.trainer", base)


def resolved(config: Config, base: Path) -> Config:
    """The same configuration with every path absolute and `trainer.cwd` filled in."""
    host = replace(
        config.host, shm=str(_at(base, config.host.shm)), directory=config.host.directory and str(_at(base, config.host.directory))
    )
    return replace(config, host=host, pipeline=[_resolved_pipeline(pipeline, base) for pipeline in config.pipeline])


def _resolved_pipeline(pipeline: Pipeline, base: Path) -> Pipeline:
    engine, trainer = pipeline.engine, pipeline.trainer
    model, python = engine.model, engine.python
    if isinstance(model, str):
        model = str(_model_folder(model, base))
    if python is not None:
        python = str(_at(base, python)) if "/" in python else shutil.which(python) or python
    cwd = str(_at(base, trainer.cwd or "."))
    return replace(pipeline, engine=replace(engine, model=model, python=python), trainer=replace(trainer, cwd=cwd))


def _at(base: Path, path: str) -> Path:
    return Path(os.path.normpath(base / os.path.expanduser(path)))


def _host(host: Host, base: Path) -> Iterator[Finding]:
    shm = _at(base, host.shm)
    if not os.path.isdir(shm):
        yield Finding("host.shm", host.shm, "is not a directory", "Name one that exists, on a fast disk where /dev/shm is small.")
    elif not os.access(shm, os.W_OK | os.X_OK):
        yield Finding("host.shm", host.shm, "is not writable", "Change its permissions, or name another.")
    directory = _at(base, host.directory) if host.directory is not None else Path("runs").absolute()
    nearest = directory
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    shown = host.directory if host.directory is not None else str(directory)
    if not os.path.isdir(nearest):
        yield Finding("host.directory", shown, f"{nearest} is a file, not a directory", "Name another directory for the runs.")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(
            "host.directory", shown, f"{nearest} is not writable", "Change its permissions, or name another directory for the runs."
        )


def _ports(host: Host, draft: Draft, ports_given: bool) -> Iterator[Finding]:
    low, high = host.ports
    if not 1024 <= low < high <= 65535:
        return  # a rule has said so
    ephemeral = ephemeral_ports()
    if ports_given and ephemeral is not None and low <= ephemeral[1] and ephemeral[0] <= high:
        problem = f"overlaps the ports that the kernel gives to outgoing connections ({ephemeral[0]} to {ephemeral[1]})"
        remedy = "Choose a window outside, or change net.ipv4.ip_local_port_range."
        yield Finding("host.ports", list(host.ports), problem, remedy)
    wanted = ports_wanted(draft)
    free = _free_ports(low, high, wanted)
    if free < wanted:
        problem = f"has {free} free ports, and this file needs {wanted}"
        yield Finding("host.ports", list(host.ports), problem, "Widen the window, or end what listens there (`ss -tlnp`).")


def ports_wanted(draft: Draft) -> int:
    """Ports that engines, gateways and trainers of a file listen on."""
    engines = [pipeline.engine for pipeline in draft.pipelines if pipeline.engine is not None]
    return sum(len(engine.gpus) // engine.tp * _PORTS_PER_ENGINE[engine.kind] for engine in engines) + 2 * len(draft.pipelines)


def _free_ports(low: int, high: int, wanted: int) -> int:
    """How many ports of the window can be bound now, counted up to `wanted`."""
    free = 0
    for port in range(low, high + 1):
        if free >= wanted:
            break
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free += 1
    return free


def ephemeral_ports() -> tuple[int, int] | None:
    """The kernel's window for outgoing connections, None where it cannot be read."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return None


def _model_folder(model: str, base: Path) -> Path:
    """The folder of that path; where there is none, that of the Hugging Face cache for `org/name`, if it is there."""
    folder = _at(base, model)
    if not hub.is_name(model) or os.path.exists(folder):
        return folder
    return hub.snapshot(model, os.environ) or folder


def _engine(engine: Engine, path: str, base: Path) -> Iterator[Finding]:
    if isinstance(engine.model, str) and engine.model:
        yield from _model(_model_folder(engine.model, base), engine.model, f"{path}.model")
    if not isinstance(engine.model, str):
        yield from _module(engine.model.make, base, engine.env, f"{path}.model.make")
    if engine.python is not None:
        yield from _program(engine.python, f"{path}.python", base, "the interpreter of SGLang's environment")


def _model(folder: Path, value: str, key: str) -> Iterator[Finding]:
    remedy = "Name a folder in Hugging Face layout (config.json, *.safetensors, tokenizer), absolute or relative to this file."
    if not os.path.exists(folder) and hub.is_name(value):
        problem = f"{folder} is not a directory, and the Hugging Face cache ({hub.cache(os.environ)}) has no complete model of that name"
        yield Finding(key, value, problem, f"Download it first (`hf download {value}`), or name a folder in Hugging Face layout.")
    elif not os.path.isdir(folder):
        yield Finding(key, value, f"{folder} is not a directory", remedy)
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield Finding(key, value, f"{folder} is not readable", "Change its permissions.")
    elif not os.access(folder / "config.json", os.R_OK):
        yield Finding(key, value, f"{folder} has no readable config.json", remedy)


def _trainer(trainer: Trainer, path: str, base: Path) -> Iterator[Finding]:
    cwd = _at(base, trainer.cwd or ".")
    if trainer.cwd is not None and not os.path.isdir(cwd):
        yield Finding(f"{path}.cwd", trainer.cwd, f"{cwd} is not a directory", "Name the folder that the trainer shall run in.")
    if trainer.command and trainer.command[0]:
        yield from _program(trainer.command[0], f"{path}.command", cwd, "a program")
    if trainer.entry is not None:
        yield from _module(trainer.entry, cwd, trainer.env, f"{path}.entry")


def _program(name: str, key: str, base: Path, what: str) -> Iterator[Finding]:
    remedy = f"Give the path of {what}."
    if "/" in name or name.startswith("~"):
        path = _at(base, name)
        if not os.path.isfile(path):
            yield Finding(key, name, f"there is no file {path}", remedy)
        elif not os.access(path, os.X_OK):
            yield Finding(key, name, f"{path} is not executable", f"Change its permissions, or {remedy[0].lower()}{remedy[1:]}")
    elif shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}") is None:
        yield Finding(key, name, "is not on the PATH", remedy)


def _module(spec: str, cwd: Path, env: dict[str, str], key: str) -> Iterator[Finding]:
    """Whether the module of `module:function` can be found, without importing anything (importing would run its code)."""
    if not ENTRY.match(spec):
        return  # a rule has said so
    theirs = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    places: Sequence[str] | None = [str(CHECKOUT), str(cwd), *theirs, *filter(None, sys.path)]
    parts = spec.partition(":")[0].split(".")
    for depth, part in enumerate(parts, 1):
        found = PathFinder.find_spec(part, places) if places else None  # by its last name: a dotted one would look at sys.modules
        if found is None:
            remedy = (
                "It is looked for in this checkout, in the trainer's `cwd` (by default this file's folder) and in PYTHONPATH of its `env`."
            )
            yield Finding(key, spec, f"there is no module {'.'.join(parts[:depth])}", remedy)
            return
        places = list(found.submodule_search_locations or ())
