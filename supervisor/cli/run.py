"""`supervise run`: a configuration file to its end, from the beginning or from where an attempt stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from supervisor.cli import streams
from supervisor.errors import ExitCode, SetUpError, UsageError

if TYPE_CHECKING:
    from supervisor.attempt.directory import RunDirectory
    from supervisor.attempt.find import Choice
    from supervisor.config.load import Loaded
    from supervisor.config.schema.findings import GpuFact
    from supervisor.config.schema.tables import Host
    from supervisor.observe.logs import Console
    from supervisor.runtime.options import Exposition


def register(app: App) -> None:
    app.command(run)


def run(
    file: Path | None = None,
    /,
    *,
    resume: Annotated[
        bool,
        Parameter(
            "--resume",
            negative="",
            help="Go on from the newest checkpoints: of FILE's newest attempt that has one, or with `--resume DIR` of that attempt "
            "(its directory, its name, or name/attempt_N; FILE may be left out then).",
        ),
    ] = False,
    resume_from: Annotated[str | None, Parameter("--resume-from", show=False)] = None,
    json: Annotated[bool, Parameter("--json", negative="", help="For programs: JSON on standard output.")] = False,
    detach: Annotated[
        bool,
        Parameter(
            "--detach",
            negative="",
            help="Let go of this terminal. Returns when everything has started: every pipeline's trainer runs and an engine has served it; "
            "or, sooner, with the exit code of what failed. Ctrl-C ends the waiting, not the run.",
        ),
    ] = False,
) -> int:
    """Run a configuration file to its end. Ctrl-C stops gracefully, a second one at once, a third one kills."""
    with streams.lasting():  # a run does not end because nobody reads what it says
        return _run(_Asked(file, resume, resume_from, json, detach))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The words of `run`."""

    file: Path | None
    resume: bool
    resume_from: str | None
    json: bool
    detach: bool


def _run(asked: _Asked) -> int:
    from supervisor.attempt.directory import runs_directory
    from supervisor.attempt.resume import behind, settle
    from supervisor.runtime.options import Options
    from supervisor.views.progress import Progress

    loaded, choice = _loaded(asked)
    attempt = _attempt(loaded, choice)
    try:
        finished = behind(attempt, loaded.config).finished
        if len(finished) == len(loaded.config.pipeline):
            settle(attempt, loaded.config)
            return _nothing_left(attempt.path, loaded)
        _announce(attempt, choice, runs_directory(loaded.config) / loaded.name)
        console: Console = "none" if asked.detach else "json" if asked.json else "readable"
        options = Options(
            console,
            loaded.source if asked.file is not None else b"",
            Progress(),
            _metrics(loaded.config.host),
            asked.detach,
            lambda: _begun(attempt, asked),
        )
        from supervisor.runtime.run import run as run_it

        summary = run_it(loaded.config, attempt, options)
    finally:
        attempt.close()
    if not asked.json:
        from supervisor.views.summary import show

        show(summary, str(attempt.path))
    return summary.exit


def _begun(attempt: "RunDirectory", asked: _Asked) -> None:
    """Said when nothing more can refuse the run."""
    if asked.json:
        return
    if not asked.detach:
        streams.say(f"run directory {attempt.path}")
        return
    from supervisor.attempt.find import called

    name = called(attempt.path)
    streams.say(f"run directory {attempt.path}; see it with `supervise logs -f {name}`, `status {name}`, `stop --run {name}`")
    streams.say("waiting until every pipeline has an engine serving and its trainer running (Ctrl-C ends the waiting, not the run)")


def _nothing_left(attempt: Path, loaded: "Loaded") -> int:
    steps = ", ".join(f"{pipeline.name} {pipeline.trainer.steps}" for pipeline in loaded.config.pipeline)
    streams.say(f"{attempt}: nothing left to do: every pipeline has done its steps ({steps}). Nothing was started.")
    streams.say("To go on, raise `steps` in the file, then `run FILE --resume`; to begin anew, `run FILE`.")
    return int(ExitCode.DONE)


def _metrics(host: "Host") -> "Exposition | None":
    """What is counted, where somebody wants to read it."""
    if host.metrics_port is None:
        return None
    from supervisor.views.metrics import Metrics

    return Metrics()


def _loaded(asked: _Asked) -> "tuple[Loaded, Choice | None]":
    """The configuration, and the attempt to go on with: of the file, or the one that the attempt to resume was started with."""
    from supervisor.attempt.directory import is_running, runs_directory, taken
    from supervisor.attempt.find import find_to_resume, to_resume
    from supervisor.config.load import load

    if asked.file is None:
        if asked.resume_from is None:
            raise UsageError("Which configuration? supervise run FILE, for example examples/quickstart.toml.")
        choice = find_to_resume(asked.resume_from, runs_directory())
        if is_running(choice.path):
            raise taken(choice.path)  # rather than to find out that its ports are taken
        return load(choice.path / "config.resolved.json", gpus), choice
    loaded = load(asked.file, gpus)
    runs = runs_directory(loaded.config)
    if asked.resume_from is not None:
        return loaded, find_to_resume(asked.resume_from, runs)
    if not asked.resume:
        return loaded, None
    if (newest := to_resume(runs / loaded.name)) is None:
        raise UsageError(f"{loaded.name} has no attempt in {runs} that could be resumed.")
    return loaded, newest


def _attempt(loaded: "Loaded", choice: "Choice | None") -> "RunDirectory":
    """The attempt to run in, locked."""
    from supervisor.attempt import directory

    if choice is not None:
        return directory.open_attempt(choice.path)
    return directory.new_attempt(directory.runs_directory(loaded.config), loaded.name)


def _announce(attempt: "RunDirectory", choice: "Choice | None", parent: Path) -> None:
    """Which attempt goes on and which are passed over; and a warning when another of this name runs."""
    from supervisor.attempt import find

    if choice is not None:
        done = ", ".join(f"{name} after {steps} steps" for name, steps in choice.steps.items())
        streams.note(f"resumes {find.called(choice.path)}: " + (done or "from the beginning, as there is no checkpoint"))
        for path, why in choice.passed:
            streams.note(f"passes over {find.called(path)}, which {why}")
    for other in find.living(parent):
        if other != attempt.path:
            name = find.called(other)
            streams.note(
                f"warning: {name} still runs, and its GPUs may be those of this run: what either holds, the other sees as taken. "
                f"`supervise stop --run {name}` stops it."
            )


def gpus(host: "Host") -> "list[GpuFact]":
    """The GPUs of the host, looked up. Raises SetUpError."""
    from supervisor.config.schema.findings import GpuFact
    from supervisor.host.gpus.inventory import open_meter
    from supervisor.host.gpus.meter import GpusUnusable

    try:
        meter = open_meter(host.gpus, host.virtual)
    except GpusUnusable as error:
        raise SetUpError(f"{error.problem}. {error.remedy}") from error  # the mistake names its key itself
    try:
        return [GpuFact(gpu.id, gpu.name, gpu.total_bytes) for gpu in meter.gpus]
    finally:
        meter.close()
