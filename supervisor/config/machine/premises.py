"""The premises are what the machine must have for a configuration: folders, interpreters, modules, ports. Everything stays as it was.

Paths of the file are taken from the file's own folder, so that a configuration means the same from everywhere.
"""

import difflib
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from supervisor.config.child_environment import choose
from supervisor.config.kinds.kind import Cuda, Installed, ModelFiles
from supervisor.config.kinds.registry import kind_of
from supervisor.config.machine import builtin_trainer, entry_points, hf_cache, interpreter, port_windows, process_limits, programs
from supervisor.config.machine.model_files import model_context, model_quantised, model_size
from supervisor.config.machine.programs import at
from supervisor.config.schema.findings import Finding, GpuFact
from supervisor.config.schema.rules import ENTRY, Draft
from supervisor.config.schema.tables import Config, EngineTable, HostTable, ModelRecipe, NotifyTable, PipelineTable, TrainerTable
from supervisor.host.processes.guardian import SWEPT_PREFIX
from supervisor.host.regular_file import shared_with
from trainers.protocol.child_env import CHECKOUT, CLIENT
from trainers.user_code import BUILT_IN, python_path


def findings(draft: Draft, base: Path, name: str, ask: bool, gpus: Sequence[GpuFact] = ()) -> Iterator[Finding]:
    """Yields what is not there. `base` is the folder of the configuration file, `name` that of its runs; with `ask` interpreters are asked what they
    have. `gpus` are those of the host, where they were looked up."""
    machine = _Machine(base, name, draft.host, ask, next((gpu.driver_cuda for gpu in gpus), None))
    if draft.host is not None:
        yield from _host(draft.host, base, name)
        yield from port_windows.findings(draft.host, draft)
    yield from process_limits.findings(draft)
    for pipeline in draft.pipelines:
        cwd = at(base, (pipeline.trainer.cwd if pipeline.trainer is not None else None) or ".")
        if pipeline.engine is not None:
            yield from _engine(pipeline.engine, f"{pipeline.path}.engine", base, cwd)
            yield from kind_of(pipeline.engine).premises(pipeline, pipeline.engine, machine)
            yield from _python(pipeline.engine, f"{pipeline.path}.engine.python", base, draft.host)
        if pipeline.trainer is not None:
            yield from _trainer(pipeline.trainer, f"{pipeline.path}.trainer", cwd)


def notify_findings(notify: NotifyTable, base: Path) -> Iterator[Finding]:
    """Yields what is wrong if the program that is told of failures is not there."""
    if notify.command is not None:
        path = programs.search_path({}, os.environ)
        yield from programs.findings(notify.command[0], "notify.command[0]", base, path, "Give the path of a program.")


def resolved(config: Config, base: Path, gpus: Sequence[GpuFact] = ()) -> Config:
    """Returns the same configuration with every path and program absolute, and with the defaults that its models and GPUs decide."""
    host = replace(
        config.host, shm=str(at(base, config.host.shm)), directory=config.host.directory and str(at(base, config.host.directory))
    )
    notify = config.notify
    if notify.command is not None:
        program = programs.resolve(notify.command[0], base, programs.search_path({}, os.environ)) or notify.command[0]
        notify = replace(notify, command=[program, *notify.command[1:]])
    return replace(config, host=host, notify=notify, pipeline=[_resolved_pipeline(pipeline, base, gpus) for pipeline in config.pipeline])


def _resolved_pipeline(pipeline: PipelineTable, base: Path, gpus: Sequence[GpuFact]) -> PipelineTable:
    engine, trainer = pipeline.engine, pipeline.trainer
    if isinstance(engine.model, str):
        folder = _model_folder(engine.model, base)
        engine = kind_of(engine).filled(replace(engine, model=str(folder)), model_size(folder), model_context(folder), gpus)
    else:
        engine = kind_of(engine).filled(engine, None, None, gpus)
    if engine.python is not None:
        engine = replace(engine, python=_interpreter(engine.python, base))
    trainer = replace(trainer, cwd=str(at(base, trainer.cwd or ".")))
    if trainer.command:
        program = programs.resolve(trainer.command[0], at(base, trainer.cwd or "."), programs.search_path(trainer.env, os.environ))
        trainer = replace(trainer, command=[program or trainer.command[0], *trainer.command[1:]])
    return replace(pipeline, engine=engine, trainer=trainer)


def _interpreter(python: str, base: Path) -> str:
    return programs.resolve(python, base, programs.search_path({}, os.environ)) or python


class _Machine:
    """This machine as a kind of engine may look at it (`supervisor.config.kinds.kind.Machine`), for one reading of one file."""

    def __init__(self, base: Path, name: str, host: HostTable | None, ask: bool, driver_cuda: int | None) -> None:
        self._base, self._name, self._host, self._ask, self._driver_cuda = base, name, host, ask, driver_cuda
        self._cuda: dict[str, Cuda | None] = {}
        self._answers: dict[tuple[str, str], Installed] = {}

    def model(self, engine: EngineTable) -> ModelFiles | None:
        if not isinstance(engine.model, str):
            return None
        folder = _model_folder(engine.model, self._base)
        if not os.path.isfile(folder / "config.json"):
            return None
        return ModelFiles(str(folder), model_context(folder), model_quantised(folder))

    def longest_shm(self) -> str | None:
        return None if self._host is None else f"{at(self._base, self._host.shm)}/{SWEPT_PREFIX}{self._name[:40]}-{'x' * 12}"

    def installed(self, python: str, package: str, called: str) -> Installed:
        """Nobody is asked when GPUs are not looked up either, nor a file that is no program: that is said elsewhere."""
        program = _interpreter(python, self._base)
        if not self._ask or not os.path.isfile(program) or not os.access(program, os.X_OK):
            return Installed(None)
        if (program, package) not in self._answers:
            self._answers[program, package] = self._installed(program, package, called)
        return self._answers[program, package]

    def cuda(self, python: str) -> Cuda | None:
        program = _interpreter(python, self._base)
        if not self._ask or self._driver_cuda is None:
            return None
        if program not in self._cuda:
            environ = choose("engine", os.environ).kept
            parts = interpreter.cuda_parts(program, environ, interpreter.CHECK_S)
            if parts is None:
                self._cuda[program] = None
            else:
                problem = interpreter.preload_problem(program, parts, environ, interpreter.CHECK_S)
                self._cuda[program] = Cuda(parts.major, self._driver_cuda, problem)
        return self._cuda[program]

    def _installed(self, program: str, package: str, called: str) -> Installed:
        environ = choose("engine", os.environ).kept
        try:
            return Installed(interpreter.installed_version(program, package, called, environ, interpreter.CHECK_S))
        except interpreter.Unanswered:
            return Installed(None)
        except interpreter.NotInstalled as error:
            return Installed(None, str(error))


def _host(host: HostTable, base: Path, name: str) -> Iterator[Finding]:
    shm = at(base, host.shm)
    if not os.path.isdir(shm):
        yield Finding("host.shm", host.shm, "is not a directory", "Name one that exists, on a fast disk where /dev/shm is small.")
    elif not os.access(shm, os.W_OK | os.X_OK):
        yield Finding("host.shm", host.shm, "is not writable", "Change its permissions, or name another.")
    elif (why := _refuses(shm)) is not None:
        yield Finding("host.shm", host.shm, f"nothing can be made there: {why}", "Name another.")
    directory = at(base, host.directory) if host.directory is not None else Path("runs").absolute()
    nearest = directory
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    shown = host.directory if host.directory is not None else str(directory)
    if not os.path.isdir(nearest):
        yield Finding("host.directory", shown, f"{nearest} is a file, not a directory", "Name another directory for the runs.")
    elif not os.access(nearest, os.W_OK | os.X_OK) or (why := _refuses(nearest)) is not None:
        problem = f"nothing can be made in {nearest}" + (f": {why}" if os.access(nearest, os.W_OK | os.X_OK) else ": it is not writable")
        yield Finding("host.directory", shown, problem, "Change its permissions, or name another directory for the runs.")
    for folder in (directory, directory / name):
        if (whose := shared_with(folder)) is not None:
            problem = f"{folder} is not safe for runs: {whose}, and could replace their files while we use them"
            yield Finding("host.directory", shown, problem, "Take write permission away from others, or name a directory of your own.")
            break


def _refuses(folder: Path) -> str | None:
    """Tries it, and says why nothing can be made in the folder: permissions do not tell of a full disk, nor of /sys."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".trainshed-", dir=folder))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _model_folder(model: str, base: Path) -> Path:
    """Returns the folder of that path; where there is none, that of the Hugging Face cache for `org/name`, if it is there."""
    folder = at(base, model)
    if not hf_cache.is_name(model) or os.path.exists(folder):
        return folder
    return hf_cache.snapshot(model, os.environ) or folder


def _engine(engine: EngineTable, path: str, base: Path, cwd: Path) -> Iterator[Finding]:
    if isinstance(engine.model, str) and engine.model:
        yield from _model(_model_folder(engine.model, base), engine.model, f"{path}.model")
    if not isinstance(engine.model, str):
        yield from _recipe(engine.model, f"{path}.model", cwd)


def _python(engine: EngineTable, key: str, base: Path, host: HostTable | None) -> Iterator[Finding]:
    if engine.python is None:
        return
    folder = at(base, engine.python).parent.parent
    virtual = host is not None and host.virtual is not None
    makes = f"`bin/sglang-cpu {folder}` makes one" if virtual else "`pip install sglang` in a venv makes one"
    remedy = f"Give the path of the interpreter of SGLang's own environment; {makes}."
    yield from programs.findings(engine.python, key, base, programs.search_path({}, os.environ), remedy)


def _recipe(recipe: ModelRecipe, path: str, cwd: Path) -> Iterator[Finding]:
    function = yield from _code(recipe.make, f"{path}.make", cwd, {})
    if function is not None:
        for name, misfit in entry_points.misfits(function, recipe.options):
            given = recipe.options.get(name, "")
            yield Finding(f"{path}.options.{name}", given, misfit.problem, misfit.remedy)
    if recipe.make == builtin_trainer.RECIPE:
        yield from builtin_trainer.recipe_options(recipe.options, f"{path}.options")


def _model(folder: Path, value: str, key: str) -> Iterator[Finding]:
    remedy = "Name a folder in Hugging Face layout (config.json, *.safetensors, tokenizer), absolute or relative to this file."
    if not os.path.exists(folder) and hf_cache.is_name(value):
        problem = (
            f"{folder} is not a directory, and the Hugging Face cache ({hf_cache.cache(os.environ)}) has no complete model of that name"
        )
        yield Finding(key, value, problem, f"Download it first (`hf download {value}`), or name a folder in Hugging Face layout.")
    elif not os.path.isdir(folder):
        yield Finding(key, value, f"{folder} is not a directory", remedy)
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield Finding(key, value, f"{folder} is not readable", "Change its permissions.")
    elif not os.access(folder / "config.json", os.R_OK):
        yield Finding(key, value, f"{folder} has no readable config.json", remedy)


def _trainer(trainer: TrainerTable, path: str, cwd: Path) -> Iterator[Finding]:
    if not os.path.isdir(cwd):
        yield Finding(f"{path}.cwd", trainer.cwd or "", f"{cwd} is not a directory", "Name the folder that the trainer shall run in.")
    elif trainer.command and trainer.command[0]:
        search = programs.search_path(trainer.env, os.environ)
        yield from programs.findings(trainer.command[0], f"{path}.command", cwd, search, "Give the path of a program.")
        yield from programs.script_findings(trainer.command, f"{path}.command", cwd)
        yield from programs.old_client_findings(trainer.command, f"{path}.command", cwd, trainer.env)
    if trainer.entry is not None:
        function = yield from _code(trainer.entry, f"{path}.entry", cwd, trainer.env)
        if function is not None and (wanted := entry_points.needs(function)):
            problem = f"is called without arguments, and wants {', '.join(wanted)}"
            yield Finding(f"{path}.entry", trainer.entry, problem, "Options come from `connect().options` (trainshed).")
    if trainer.entry == builtin_trainer.TRAINER:
        yield from builtin_trainer.trainer_options(trainer.options, f"{path}.options")


def _code(spec: str, key: str, cwd: Path, env: dict[str, str]) -> Generator[Finding, None, entry_points.Function | None]:
    """Returns the function of `module:function`, where it can be found by reading alone."""
    if not ENTRY.match(spec):
        return None  # a rule has said so
    path = python_path(spec, str(cwd), env.get("PYTHONPATH")).split(os.pathsep)
    found = entry_points.find(spec, [*path, *(folder for folder in sys.path if folder not in ("", str(CHECKOUT), str(CLIENT)))])
    if isinstance(found, entry_points.Missing):
        where = "It is looked for in the trainer's `cwd` (by default this file's folder) and in PYTHONPATH of its `env`."
        ours = difflib.get_close_matches(spec, BUILT_IN, n=1, cutoff=0.9)
        yield Finding(key, spec, found.problem, f'Did you mean "{ours[0]}"?' if ours else found.remedy or where)
        return None
    return found
