"""These commands show the history of a run: timeline, report. They read the run's files and ask no supervisor, so a dead run has one, too."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from supervisor.cli import streams
from supervisor.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from supervisor.views.history.page_data import PageData
    from supervisor.views.history.reader import HistoryReader

RunName = Annotated[str | None, Parameter(help="A run's directory, its name, or name/attempt_N. Default: the latest here.")]
AT_ONCE_BYTES: Final = 16 << 20
"""Of a recording that is read at the end of a run, for its summary: some seconds."""
Output = Annotated[Path | None, Parameter(["--output", "-o"], help="Where it is written. Default: in the run's directory.")]


def timeline(run: RunName = None, /, *, output: Output = None) -> int:
    """Write a run's history as a trace for ui.perfetto.dev: a track for each GPU and each pipeline, waits with their reasons, counters."""
    from supervisor.attempt.find import find_run
    from supervisor.views.history.reader import read_history
    from supervisor.views.history.trace import trace

    attempt = find_run(run)
    history = read_history(attempt, time.time())
    file = output or attempt / "timeline.json"
    _write(file, trace(history, name_of(attempt)))
    return _say(f"{file}: open it at ui.perfetto.dev or in chrome://tracing")


def report(run: RunName = None, /, *, output: Output = None, json: streams.Json = False) -> int:
    """Write a run's report: one HTML file that says who held which GPU, where the time went, how rewards went, and what failed."""
    from supervisor.attempt.find import find_run
    from supervisor.views.history.page import page

    attempt = find_run(run)
    if json:
        streams.say_json(data_of(attempt))
        return int(ExitCode.DONE)
    file = output or attempt / "report.html"
    _write(file, page(data_of(attempt)))
    return _say(str(file))


def data_of(attempt: Path, reader: "HistoryReader | None" = None) -> "PageData":
    """Return what the page of an attempt shows now; a `reader` that is kept reads on. Raises UsageError."""
    from supervisor.attempt import summary
    from supervisor.views.history.page_data import page_data
    from supervisor.views.history.reader import read_history, read_on

    history = read_on(reader, time.time()) if reader is not None else read_history(attempt, time.time())
    told = None if history.running else summary.read(attempt)
    return page_data(history, run=name_of(attempt), directory=str(attempt), summary=told, configuration=_configuration(attempt))


def costs_of(attempt: Path) -> "list[Text]":
    """Return what an ended run cost, a line each. Nothing, where nothing is recorded; a pointer, where reading it would take long."""
    from rich.text import Text

    from supervisor.attempt.recording import FOLDER, histories
    from supervisor.views.history.costs import costs
    from supervisor.views.history.reader import read_history

    try:
        if sum(path.stat().st_size for path in histories(attempt / FOLDER)) > AT_ONCE_BYTES:
            return [Text("a long run: `bin/supervise report` says where its time went")]
        return list(costs(read_history(attempt, time.time())))
    except (OSError, UsageError):
        return []


def _configuration(attempt: Path) -> dict[str, object] | None:
    """Return the resolved configuration of an attempt; None where there is none that can be read."""
    import msgspec

    from supervisor.config.sources import RESOLVED
    from supervisor.host.regular_file import read_regular

    try:
        found: dict[str, object] = msgspec.json.decode(read_regular(attempt / RESOLVED), type=dict[str, object])
    except (OSError, ValueError, RecursionError):
        return None
    return found


def name_of(attempt: Path) -> str:
    """Return what an attempt is called: `quickstart/attempt_1`."""
    return "/".join(attempt.parts[-2:])


def _write(file: Path, content: bytes) -> None:
    from supervisor.host.atomic_file import write_atomically

    try:
        write_atomically(file, content, mode=0o600)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}. Name another place with -o FILE.") from error


def _say(text: str) -> int:
    streams.say(text)
    return int(ExitCode.DONE)
