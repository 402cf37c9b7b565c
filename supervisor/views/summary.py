"""The table at the end of a run."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from supervisor.errors import ExitCode
from supervisor.runtime.plain import one_line
from supervisor.runtime.summary import Summary
from supervisor.views.status import cell, duration, reward

_COLUMNS = ("pipeline", "steps", "samples", "reward", "weights", "pauses", "resumes", "restarts", "waited")


def render(summary: Summary, directory: str) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    for name, pipeline in summary.pipelines.items():
        told = reward(pipeline.first_reward, pipeline.last_reward)
        row = (pipeline.steps, pipeline.samples, told, f"v{pipeline.weight_version}", pipeline.pauses, pipeline.resumes, pipeline.restarts)
        table.add_row(cell(name, "bold"), *(cell(value) for value in row), cell(f"{pipeline.waited_s:.1f} s"))
    return Group(table, _verdict(summary), Text(one_line(directory, 500), style="dim"))


def _verdict(summary: Summary) -> Text:
    try:
        code = ExitCode(summary.exit)
        meaning = code.meaning
    except ValueError:
        meaning = "unknown exit code"
    style = "bold green" if summary.exit == ExitCode.DONE else "bold red"
    text = Text(f"{meaning[0].upper()}{meaning[1:]} (exit {summary.exit}) after {duration(summary.wall_s)}.", style=style)
    if summary.lost_log_lines:
        text.append(f" {summary.lost_log_lines} log lines were lost (disk full?).", style="yellow")
    return text


def show(summary: Summary, directory: str, console: Console | None = None) -> None:
    console = console if console is not None else Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200, no_color=True)
    console.print(render(summary, directory))
