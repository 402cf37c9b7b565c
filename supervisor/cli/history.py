"""These commands show the history of a run: timeline, report. They read the run's files and ask no supervisor, so a dead run has one, too."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from supervisor.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from supervisor.views.history.page_data import PageData

RunName = Annotated[str | None, Parameter(help="A run's directory, its name, or name/attempt_N. Default: the latest here.")]
Output = Annotated[Path | None, Parameter(["--output", "-o"], help="Where it is written. Default: in the run's directory.")]


def timeline(run: RunName = None, /, *, output: Output = None) -> int:
    """Write a run's history as a trace for ui.perfetto.dev: a track for each GPU and each pipeline, waits with their reasons, counters."""
    from supervisor.attempt.find import find_run
    from supervisor.attempt.history import read_history
    from supervisor.views.history.trace import trace

    attempt = find_run(run)
    history = read_history(attempt, time.time())
    file = output or attempt / "timeline.json"
    _write(file, trace(history, _name(attempt)))
    return _say(f"{file}: open it at ui.perfetto.dev or in chrome://tracing")


def report(run: RunName = None, /, *, output: Output = None) -> int:
    """Write a run's report: one HTML file that says who held which GPU, where the time went, how rewards went, and what failed."""
    from supervisor.attempt.find import find_run
    from supervisor.views.history.page import page

    attempt = find_run(run)
    file = output or attempt / "report.html"
    _write(file, page(data_of(attempt)))
    return _say(str(file))


def data_of(attempt: Path) -> "PageData":
    """Return what the page of an attempt shows now. Raises UsageError."""
    from supervisor.attempt import summary
    from supervisor.attempt.history import read_history
    from supervisor.views.history.page_data import page_data

    history = read_history(attempt, time.time())
    told = None if history.running else summary.read(attempt)
    return page_data(history, run=_name(attempt), directory=str(attempt), summary=told, configuration=_configuration(attempt))


def _configuration(attempt: Path) -> dict[str, object] | None:
    """Return the resolved configuration of an attempt; None where there is none that can be read."""
    import msgspec

    from supervisor.config.load import RESOLVED
    from supervisor.host.regular_file import read_regular

    try:
        found: dict[str, object] = msgspec.json.decode(read_regular(attempt / RESOLVED), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return None
    return found


def _name(attempt: Path) -> str:
    return "/".join(attempt.parts[-2:])


def _write(file: Path, content: bytes) -> None:
    from supervisor.host.atomic_file import write_atomically

    try:
        write_atomically(file, content, mode=0o600)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}. Name another place with -o FILE.") from error


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return int(ExitCode.DONE)
