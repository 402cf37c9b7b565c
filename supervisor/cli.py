"""The command line. Every command imports what it needs when it runs, so that `status` does not pay for `run`."""

import difflib
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, CycloptsError, Parameter

from supervisor import commands_operate, commands_replay, commands_simulate
from supervisor.errors import ConfigError, ExitCode, SetUpError, SupervisorError, UsageError

if TYPE_CHECKING:
    from supervisor.config import Host
    from supervisor.configuration.facts import GpuFact
    from supervisor.load import Loaded
    from supervisor.runtime.directory import RunDirectory
    from supervisor.runtime.logs import Console
    from supervisor.runtime.options import Exposition

VERSION: Final = "0.1.0"
_COMMANDS: Final = ("run", "check", "status", "logs", "stop", "restart", "drain", "pause", "resume", "reset", "plan", "simulate", "replay")
_GLOBAL: Final = frozenset(["--help", "-h", "--version"])
_POLL_S: Final = 0.1

app = App(
    name="supervise",
    help="Several RL post-training runs share the GPUs of one box. Short form of `run FILE`: just FILE.",
    version=f"trainshed {VERSION}",
    result_action="return_value",
)
commands_operate.register(app)
commands_simulate.register(app)
commands_replay.register(app)

Json = Annotated[bool, Parameter("--json", negative="", help="For programs: JSON on standard output.")]
Run = Annotated[str | None, Parameter("--run", help="A run's directory, its name, or name/attempt_N. Default: the latest here.")]


@app.command
def run(
    file: Path | None = None,
    /,
    *,
    resume: Annotated[
        bool, Parameter("--resume", negative="", help="Go on from the newest checkpoints: of FILE's newest attempt, or --resume DIR.")
    ] = False,
    resume_from: Annotated[str | None, Parameter("--resume-from", show=False)] = None,
    json: Json = False,
    detach: Annotated[
        bool, Parameter("--detach", negative="", help="Return when everything has started; the run goes on without this terminal.")
    ] = False,
) -> int:
    """Run a configuration file to its end. Ctrl-C stops gracefully, a second one at once, a third one kills."""
    from supervisor.runtime.options import Options
    from supervisor.views.progress import Progress

    loaded = _loaded(file, resume_from)
    attempt = _attempt(loaded, resume, resume_from)
    try:
        if file is not None:
            attempt.write_config(loaded.source, loaded.config)
        if not json:
            _say(f"run directory {attempt.path}" + ("; see it with `supervise logs -f`, `status`, `stop`" if detach else ""))
        console: Console = "none" if detach else "json" if json else "readable"
        options = Options(console, attempt.resumed, loaded.source, Progress(), _metrics(loaded.config.host))
        from supervisor.runtime.run import run as run_it

        code = run_it(loaded.config, attempt, options)
    finally:
        attempt.close()
    if options.console == "readable":
        _show_summary(attempt.path)
    return int(code)


def _metrics(host: "Host") -> "Exposition | None":
    """What is counted, where somebody wants to read it."""
    if host.metrics_port is None:
        return None
    from supervisor.views.metrics import Metrics

    return Metrics()


def _attempt(loaded: "Loaded", resume: bool, resume_from: str | None) -> "RunDirectory":
    """The attempt to run in, locked: the one to resume, or a new one."""
    from supervisor.runtime import directory

    runs = directory.runs_directory(loaded.config)
    if resume_from is not None:
        return directory.open_attempt(directory.find_run(resume_from, runs))
    if not resume:
        return directory.new_attempt(runs, loaded.name)
    newest = directory.newest_attempt(runs / loaded.name)
    if newest is None:
        raise UsageError(f"{loaded.name} has no attempt in {runs} that could be resumed.")
    return directory.open_attempt(newest)


def _loaded(file: Path | None, resume_from: str | None) -> "Loaded":
    """The configuration: of the file, or the one that the attempt to resume was started with."""
    from supervisor.load import load
    from supervisor.runtime.directory import find_run

    if file is not None:
        return load(file, _gpus)
    if resume_from is None:
        raise UsageError("Which configuration? supervise run FILE, for example examples/quickstart.toml.")
    return load(find_run(resume_from) / "config.resolved.json", _gpus)


def _gpus(host: "Host") -> "list[GpuFact]":
    """The GPUs of the host, looked up. Raises SetUpError."""
    from supervisor.configuration.facts import GpuFact
    from supervisor.runtime.gpus import GpusUnusable
    from supervisor.runtime.inventory import inventory

    try:
        meter = inventory(host)
    except GpusUnusable as error:
        raise SetUpError(re.sub(r"^host\.gpus[^:]*: ", "", str(error))) from error  # the mistake names its key itself
    try:
        return [GpuFact(gpu.id, gpu.name, gpu.total_bytes) for gpu in meter.gpus]
    finally:
        meter.close()


@app.command
def check(file: Path, /, *, json: Json = False) -> int:
    """Say what a configuration file means on this machine, and start nothing."""
    from supervisor.load import load
    from supervisor.views import check as view

    loaded = load(file, _gpus)
    picture = view.look(loaded)
    if json:
        _print_json(picture)
    else:
        view.show(loaded, picture)
    return int(ExitCode.DONE if picture.fits else ExitCode.CONFIGURATION)


@app.command
def status(run: str | None = None, /, *, json: Json = False) -> int:
    """Show a run: its pipelines, processes and GPUs, and what waits for what."""
    from supervisor.runtime import operator, summary
    from supervisor.views import status as view

    attempt = _find(run)
    try:
        reply = operator.ask(attempt / "control.sock", operator.StatusRequest())
    except operator.NotRunning:
        ended = summary.read(attempt)
        if ended is None:
            raise
        if json:
            _print_json(ended)
        else:
            _show_summary(attempt)
        return int(ExitCode.DONE)
    if not isinstance(reply, operator.StatusReply):
        return commands_operate.tell(reply)
    if json:
        _print_json(reply.snapshot)
    else:
        view.show(reply.snapshot)
    return int(ExitCode.DONE)


@app.command
def logs(
    *names: str,
    follow: Annotated[bool, Parameter(["--follow", "-f"], negative="", help="Go on until the run ends.")] = False,
    lines: Annotated[int | None, Parameter(["--lines", "-n"], help="Of each log at most the last so many lines (with -f: 10).")] = None,
) -> int:
    """Show the logs of a run as one stream: logs [RUN] [p1 | p1/engine/0 | p1/trainer | p1/gateway | supervisor]."""
    from supervisor.runtime.directory import is_running
    from supervisor.views import follow as view

    attempt, target = _run_and_target(names)
    if lines is not None and lines < 0:
        raise UsageError("--lines counts from 0.")
    merge = view.Merge(attempt, view.parse_target(target), sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    try:
        for line in merge.history(10 if follow and lines is None else lines):
            _say(line)
        if follow:
            view.follow(merge, _say, lambda: time.sleep(_POLL_S), lambda: is_running(attempt))
    finally:
        merge.close()
    return int(ExitCode.DONE)


def _run_and_target(names: Sequence[str]) -> tuple[Path, str | None]:
    """`RUN TARGET`, or one of them: what is a directory (here or in `runs`) is a run."""
    if len(names) > 2:
        raise UsageError("logs takes a run and a target at most: logs [RUN] [p1/engine/0].")
    if len(names) == 2:
        return _find(names[0]), names[1]
    if names and (os.path.isdir(names[0]) or os.path.isdir(Path("runs") / names[0])):
        return _find(names[0]), None
    return _find(None), names[0] if names else None


def _find(run: str | None) -> Path:
    from supervisor.runtime.directory import find_run

    return find_run(run)


def _show_summary(attempt: Path) -> None:
    from supervisor.runtime import summary
    from supervisor.views.summary import show

    if (ended := summary.read(attempt)) is not None:
        show(ended, str(attempt))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    import msgspec

    _say(msgspec.json.encode(value).decode())


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments as cyclopts can read them: the bare form becomes `run`, and `--resume DIR` (whose DIR may be left out) `--resume-from DIR`."""
    words = list(arguments)
    if words and words[0] not in _COMMANDS and words[0] not in _GLOBAL:
        if not words[0].startswith("-") and not words[0].endswith(".toml") and not os.path.exists(words[0]):
            close = difflib.get_close_matches(words[0], _COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `supervise --help`."
            raise UsageError(f"{words[0]!r} is neither a command nor a file; {hint}")
        words.insert(0, "run")
    if words[:1] != ["run"]:
        return words
    done: list[str] = []
    for word in words:
        if done and done[-1] == "--resume" and not word.startswith("-") and not word.endswith(".toml"):
            done[-1:] = ["--resume-from", word]
        elif word.startswith("--resume="):
            done += ["--resume-from", word.partition("=")[2]]
        else:
            done.append(word)
    return done


def main(arguments: Sequence[str]) -> int:
    """Runs one command; the exit code. Any mistake of the operator is one clear line (a configuration file's: one line each)."""
    try:
        result = app(arranged(arguments) or ["--help"], exit_on_error=False, print_error=False)
        return result if isinstance(result, int) else int(ExitCode.DONE)
    except ConfigError as error:
        from supervisor.views.check import show_mistakes

        show_mistakes(error.mistakes)
        return int(error.exit_code)
    except CycloptsError as error:
        return _fail(f"{_one_sentence(error)} See `supervise --help`.", ExitCode.CONFIGURATION)
    except SupervisorError as error:
        if error.exit_code is ExitCode.BUG:
            traceback.print_exc()
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # `logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.DONE)
    except KeyboardInterrupt:  # a run under way has its own signals; here it has not begun, or somebody has seen enough of a log
        return int(ExitCode.STOPPED if arranged(arguments)[:1] == ["run"] else ExitCode.DONE)
    except Exception:
        traceback.print_exc()
        return _fail("this is a bug of ours; the lines above say where.", ExitCode.BUG)


def _one_sentence(error: CycloptsError) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _fail(text: str, code: ExitCode) -> int:
    sys.stderr.write(f"supervise: {text}\n")
    return int(code)
