"""This module is the command line: the table of commands, those that are a few lines, and what becomes of their errors.

A command is added by writing its function and naming it in `COMMANDS`; everything else (help, the bare form, hints at a typing error, which
calls need a guardian) follows from that. Every command imports what it needs when it runs, so that `status` does not pay for `run`.
"""

import difflib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError

from supervisor.cli import doctor, history, look, operate, replay, run, simulate, streams
from supervisor.cli.run import gpus
from supervisor.errors import ConfigError, ExitCode, SupervisorError, UsageError

VERSION: Final = "0.1.0"
_GLOBAL: Final = frozenset(["--help", "-h", "--version"])
_POLL_S: Final = 0.1

app = App(
    name="supervise",
    help="Several RL post-training runs share the GPUs of one box. Short form of `run FILE`: just FILE.",
    version=f"trainshed {VERSION}",
    result_action="return_value",
)


def check(file: Path, /, *, json: streams.Json = False) -> int:
    """Say what a configuration file means on this machine, and start nothing."""
    from supervisor.config.load import load
    from supervisor.views import check as view

    try:
        loaded = load(file, gpus)
    except ConfigError as error:
        if not json:
            raise
        streams.say_json({"mistakes": error.mistakes})
        return int(error.exit_code)
    picture = view.look(loaded)
    if json:
        streams.say_json(picture)
    else:
        view.show(loaded, picture)
    return int(ExitCode.DONE if picture.fits else ExitCode.CONFIGURATION)


def logs(
    *names: Annotated[str, Parameter(help="A run (its directory, name, or name/attempt_N), a part of it, or both.")],
    follow: Annotated[bool, Parameter(["--follow", "-f"], negative="", help="Go on until the run ends.")] = False,
    lines: Annotated[int | None, Parameter(["--lines", "-n"], help="Of each log at most the last so many lines (with -f: 10).")] = None,
) -> int:
    """Show the logs of a run: logs [RUN] [p1 | p1/engine/0 | p1/trainer | p1/gateway | p1/model | supervisor | prewarm].

    What the supervisor and the gateways wrote is one stream, by time (UTC). Lines of other processes have no times: what they have
    written so far comes before it, a block for each, and with --follow their new lines are shown as they arrive.
    """
    from supervisor.attempt.directory import is_running
    from supervisor.views import logs as view
    from supervisor.views.log_sources import select

    attempt, target = _run_and_target(names)
    if lines is not None and lines < 0:
        raise UsageError("--lines counts from 0.")
    merge = view.Merge(attempt, select(attempt, target), sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    try:
        there = merge.history(10 if follow and lines is None else lines)
        for line in there:
            streams.say(line)
        if follow:
            view.follow(merge, streams.say, lambda: time.sleep(_POLL_S), lambda: is_running(attempt))
        elif not there and lines != 0:
            sys.stderr.write(f"supervise: nothing is logged of {target or attempt} yet.\n")
    finally:
        merge.close()
    return int(ExitCode.DONE)


def env(
    pipeline: Annotated[str, Parameter(help="p1")],
    /,
    *,
    run: operate.RunOption = None,
) -> int:
    """Print URL and key of a pipeline's gateway, for clients of your own: eval "$(supervise env p1)"."""
    from supervisor.attempt.gateway_keys import access
    from supervisor.views.exports import exports

    with streams.lasting():
        for line in exports(access(_find(run), pipeline)):
            streams.say(line)
    return int(ExitCode.DONE)


def _run_and_target(names: Sequence[str]) -> tuple[Path, str | None]:
    """Read `RUN TARGET`, or one of them: what names no run is a part of the latest. Raises UsageError."""
    if len(names) > 2:
        raise UsageError("logs takes a run and a target at most: logs [RUN] [p1/engine/0].")
    if not names or len(names) == 2:
        return _find(names[0] if names else None), names[1] if names else None
    try:
        return _find(names[0]), None
    except UsageError:
        return _find(None), names[0]


def _find(run: str | None) -> Path:
    from supervisor.attempt.find import find_run

    return find_run(run)


COMMANDS: Final[tuple[Callable[..., int], ...]] = (
    run.run, check, doctor.doctor, look.status, look.why, look.ps, logs, env,
    operate.stop, operate.restart, operate.drain, operate.pause, operate.resume, operate.reset,
    simulate.plan, simulate.simulate, replay.replay,
    history.timeline, history.report,
)  # fmt: skip
for _command in COMMANDS:
    app.command(_command)
_NAMES: Final = tuple(command.__name__ for command in COMMANDS)
_ACTING: Final = frozenset(
    ["run", *(command.__name__ for command in COMMANDS if command.__module__ == operate.__name__), "--now", "--kill"]
)
"""Words that start, change or end something: no typing error is answered with one of them."""


def arranged(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as cyclopts can read them.

    The bare form becomes `run`, and `--resume DIR` (whose DIR may be left out) `--resume-from DIR`. Raises UsageError.
    """
    words = list(arguments)
    if words and words[0] not in _NAMES and words[0] not in _GLOBAL:
        if not words[0].startswith("-") and not words[0].endswith(".toml") and not os.path.exists(words[0]):
            close = [name for name in difflib.get_close_matches(words[0], _NAMES, n=1) if name not in _ACTING]
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
    """Run one command and return the exit code. Any mistake of the operator is one clear line (a configuration file's: one line each)."""
    streams.present()
    try:
        result = app(arranged(arguments) or ["--help"], exit_on_error=False, print_error=False)
        return result if isinstance(result, int) else int(ExitCode.DONE)
    except ConfigError as error:
        from supervisor.views.check import show_mistakes

        with streams.lasting():
            show_mistakes(error.mistakes)
        return int(error.exit_code)
    except CycloptsError as error:
        return _fail(f"{_one_sentence(error)} See `supervise --help`.", ExitCode.CONFIGURATION)
    except SupervisorError as error:
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
    if isinstance(error, UnknownOptionError):
        given = error.token.keyword or error.token.value
        names = [name for argument in error.argument_collection if argument.parse for name in argument.names if name not in _ACTING]
        close = difflib.get_close_matches(given, names, n=1, cutoff=0.75)
        return f"Unknown option: {given}." + (f" Did you mean {close[0]}?" if close else "")
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _fail(text: str, code: ExitCode) -> int:
    with streams.lasting():
        streams.note(text)
    return int(code)
