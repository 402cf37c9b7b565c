"""`supervise run` runs a configuration file to its end, from the beginning or from where an attempt stands."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from supervisor.cli import streams
from supervisor.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from supervisor.attempt.directory import RunDirectory
    from supervisor.attempt.find import Choice
    from supervisor.config.load import Loaded
    from supervisor.config.schema.findings import GpuFact
    from supervisor.config.schema.tables import HostTable
    from supervisor.observe.logs import Console
    from supervisor.runtime.startup import Exposition


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
    anyway: Annotated[
        bool, Parameter("--anyway", negative="", help="Start although `check` says that it does not fit on this machine.")
    ] = False,
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
        return _run(_Asked(file, resume, resume_from, json, detach, anyway))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The arguments of `run`."""

    file: Path | None
    resume: bool
    resume_from: str | None
    json: bool
    detach: bool
    anyway: bool


def _run(asked: _Asked) -> int:
    from supervisor.attempt.directory import runs_directory
    from supervisor.attempt.find import open_chosen
    from supervisor.attempt.resume import conclude_finished, earlier_starts
    from supervisor.runtime.startup import Options
    from supervisor.views.progress import Progress

    loaded, choice = _loaded(asked)
    if choice is None and not asked.anyway:
        _refuse_what_does_not_fit(loaded)
    runs = runs_directory(loaded.config)
    attempt = open_chosen(choice, runs, loaded.name)
    try:
        finished = earlier_starts(attempt, loaded.config).finished
        if len(finished) == len(loaded.config.pipeline):
            conclude_finished(attempt, loaded.config)
            _refuse_to_pass_over(choice)
            return _nothing_left(attempt.path, loaded)
        _announce(choice)
        console: Console = "none" if asked.detach else "json" if asked.json else "readable"
        options = Options(
            console,
            loaded.source if asked.file is not None else b"",
            os.path.realpath(loaded.path),
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


def _refuse_what_does_not_fit(loaded: "Loaded") -> None:
    """Refuse a run that would die of what `check` knows already. Raises UsageError."""
    from supervisor.views.check import look, short_of

    if not (found := look(loaded)).fits:
        short = "; ".join(short_of(found))
        raise UsageError(
            f"It does not fit: {short}. `supervise check {loaded.path}` shows all of it; `run --anyway` starts it all the same."
        )


def _begun(attempt: "RunDirectory", asked: _Asked) -> None:
    """Say that the run has begun: nothing more can refuse it."""
    if asked.json:
        return
    if not asked.detach:
        streams.say(f"run directory {attempt.path}")
        if streams.on_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            streams.say("closing this terminal stops the run gracefully, as Ctrl-C does; what should outlive it is started with --detach")
        return
    from supervisor.attempt.find import display_path

    name = display_path(attempt.path)
    streams.say(f"run directory {attempt.path}; see it with `supervise logs -f {name}`, `status {name}`, `stop --run {name}`")
    streams.say("waiting until every pipeline has an engine serving and its trainer running (Ctrl-C ends the waiting, not the run)")


def _refuse_to_pass_over(choice: "Choice | None") -> None:
    """Refuse to call the end of an older attempt the success of a newer one. Raises UsageError."""
    from supervisor.attempt.find import display_path

    if choice is not None and choice.passed:
        newest = display_path(choice.passed[0][0])
        raise UsageError(
            f"{display_path(choice.path)} has done all its steps, but {newest} is newer and has not. "
            f"Go on with that one, `run --resume {newest}`, or begin anew, `run FILE`."
        )


def _nothing_left(attempt: Path, loaded: "Loaded") -> int:
    steps = ", ".join(f"{pipeline.name} {pipeline.trainer.steps}" for pipeline in loaded.config.pipeline)
    streams.say(f"{attempt}: nothing left to do: every pipeline has done its steps ({steps}). Nothing was started.")
    streams.say("To go on, raise `steps` in the file, then `run FILE --resume`; to begin anew, `run FILE`.")
    return int(ExitCode.DONE)


def _metrics(host: "HostTable") -> "Exposition | None":
    """Count, where the configuration has a port at which somebody may read the counts."""
    if host.metrics_port is None:
        return None
    from supervisor.views.metrics import Metrics

    return Metrics()


def _loaded(asked: _Asked) -> "tuple[Loaded, Choice | None]":
    """Load the configuration and choose the attempt to go on with. Without a file, the configuration is the one of that attempt."""
    from supervisor.attempt.directory import runs_directory
    from supervisor.attempt.find import choose
    from supervisor.config.load import RESOLVED, load

    if asked.file is not None:
        if asked.resume or asked.resume_from is not None:
            _refuse_what_runs(asked.file)
        loaded = load(asked.file, gpus)
        return loaded, choose(runs_directory(loaded.config), loaded.name, resume=asked.resume, named=asked.resume_from)
    if asked.resume_from is None or (choice := choose(runs_directory(), None, named=asked.resume_from)) is None:
        raise UsageError("Which configuration? supervise run FILE, for example examples/quickstart.toml.")
    return load(choice.path / RESOLVED, gpus), choice


def _refuse_what_runs(file: Path) -> None:
    """Refuse to resume what runs, before its own ports are found to be taken. Raises UsageError."""
    from supervisor.attempt.box_runs import box_runs
    from supervisor.attempt.directory import already_running

    for run in box_runs():
        if run.ours and run.file == os.path.realpath(file):
            raise already_running(Path(run.directory))


def _announce(choice: "Choice | None") -> None:
    """Say which attempt goes on and which are passed over."""
    from supervisor.attempt import find

    if choice is not None:
        done = ", ".join(f"{name} after {steps} steps" for name, steps in choice.steps.items())
        streams.note(f"resumes {find.display_path(choice.path)}: " + (done or "from the beginning, as there is no checkpoint"))
        for path, why in choice.passed:
            streams.note(f"passes over {find.display_path(path)}, which {why}")


def gpus(host: "HostTable") -> "list[GpuFact]":
    """Look up the GPUs of the host. Raises SetUpError."""
    from supervisor.config.schema.findings import GpuFact
    from supervisor.host.gpus.inventory import open_meter

    meter = open_meter(host.gpus, host.virtual)
    try:
        return [GpuFact(gpu.id, gpu.name, gpu.total_bytes, gpu.driver_cuda) for gpu in meter.gpus]
    finally:
        meter.close()
