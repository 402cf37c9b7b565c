"""`supervise logs` shows what a run has logged, and goes on with it if asked to."""

import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from supervisor.cli import streams
from supervisor.cli.run import Level
from supervisor.errors import ExitCode, UsageError

_POLL_S: Final = 0.1


def logs(
    *names: Annotated[str, Parameter(help="A run (its directory, name, or name/attempt_N), a part of it, or both.")],
    follow: Annotated[bool, Parameter(["--follow", "-f"], negative="", help="Go on until the run ends.")] = False,
    lines: Annotated[int | None, Parameter(["--lines", "-n"], help="Of each log at most the last so many lines (with -f: 10).")] = None,
    level: Annotated[Level, Parameter("--level", help="Only records of at least this level.")] = "debug",
    since: Annotated[str | None, Parameter("--since", help="Only what was written since: 30m, 2h, 1d, 14:30, 2026-11-27T14:30.")] = None,
    grep: Annotated[str | None, Parameter("--grep", help="Only lines in which this regular expression is found.")] = None,
) -> int:
    """Show the logs of a run: logs [RUN] [p1 | p1/engine/0 | p1/trainer | p1/gateway | p1/model | supervisor | prewarm].

    What the supervisor and the gateways wrote is one stream, by (local) time. Lines of other processes have no times: what they have
    written so far comes before it, a block for each, and with --follow their new lines are shown as they arrive. With --level or --since
    only lines are shown that have a level or a time.
    """
    from supervisor.attempt.directory import is_running
    from supervisor.views import logs as view
    from supervisor.views.log_sources import select

    attempt, target = _run_and_target(names)
    if lines is not None and lines < 0:
        raise UsageError("--lines counts from 0.")
    keep = view.Filter(level, "" if since is None else view.since(since, datetime.now().astimezone()), _pattern(grep))
    merge = view.Merge(attempt, select(attempt, target), sys.stdout.isatty() and not os.environ.get("NO_COLOR"), keep)
    try:
        there = merge.history(10 if follow and lines is None else lines)
        for line in there:
            streams.say(line)
        if follow:
            view.follow(merge, streams.say, lambda: time.sleep(_POLL_S), lambda: is_running(attempt))
        elif not there and lines != 0:
            sys.stderr.write(f"supervise: nothing is logged of {target or attempt} yet, or nothing of what is asked for.\n")
    finally:
        merge.close()
    return int(ExitCode.DONE)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"--grep {text!r} is no regular expression: {error}.") from error


def _run_and_target(names: Sequence[str]) -> tuple[Path, str | None]:
    """Read `RUN TARGET`, or one of them: what names no run is a part of the latest. Raises UsageError, Foreign."""
    from supervisor.attempt.find import Foreign, find_run

    if len(names) > 2:
        raise UsageError("logs takes a run and a target at most: logs [RUN] [p1/engine/0].")
    if not names or len(names) == 2:
        return find_run(names[0] if names else None), names[1] if names else None
    try:
        return find_run(names[0]), None
    except Foreign:
        raise
    except UsageError:
        return find_run(None), names[0]
