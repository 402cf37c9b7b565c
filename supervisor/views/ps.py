"""`bin/supervise ps` shows the runs of this box, of all users: whose each is, which GPUs it holds, how far it is and how to reach it."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from supervisor.attempt.box_runs import BoxRun
from supervisor.observe.sanitize import one_line
from supervisor.observe.status import Status
from supervisor.views.status import duration
from supervisor.views.table import Column, Row, render

_COLUMNS = (
    Column("run"), Column("user"), Column("GPUs"), Column("for", True, 3), Column("pid", True, 4), Column("steps", False, 2),
)  # fmt: skip


def progress(status: Status) -> str:
    """Return `p1 3/5, p2 4/5`."""
    return ", ".join(f"{view.name} {view.step}/{view.steps}" for view in status.pipelines)


def gpus(run: BoxRun) -> str:
    """Return `0-3`, `1 4-7`, or the UUIDs; virtual ones are called so."""
    numbers = [int(gpu) for gpu in run.gpus if gpu.isdecimal()]
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    names = [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    text = " ".join([*names, *(gpu for gpu in run.gpus if not gpu.isdecimal())])
    return f"{text} (virtual)" if run.virtual else text


def show(runs: Sequence[BoxRun], steps: Mapping[str, str], now: float, console: Console | None = None) -> None:
    """Print a row a run. `steps` are of those that could be asked, by their directory; `now` is in seconds since the epoch."""
    console = console if console is not None else Console()
    width = console.width if console.is_terminal else None
    rows = [_row(run, steps.get(run.directory), now) for run in runs]
    for line in render("Runs of this box", _COLUMNS, rows, width):
        console.print(line, soft_wrap=True, highlight=False)


def _row(run: BoxRun, steps: str | None, now: float) -> Row:
    told = steps if steps is not None else ", ".join(run.pipelines)
    cells = (run.name, run.user, gpus(run), duration(max(0.0, now - run.since)), str(run.pid), told)
    reach = f"bin/supervise status {run.directory}" if run.ours else f"belongs to {run.user}: only they may look into it or act on it"
    return Row([one_line(cell, 120) for cell in cells], (one_line(reach, 1000),), ("bold",), "dim")
