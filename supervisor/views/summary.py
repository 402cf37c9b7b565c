"""This module prints the table at the end of a run."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from supervisor.attempt.summary import Summary
from supervisor.errors import ExitCode
from supervisor.observe.sanitize import one_line
from supervisor.views.status import cell, duration, reward

_COLUMNS = ("pipeline", "steps", "samples", "reward", "weights", "pauses", "resumes", "restarts", "waited")


def render(summary: Summary, directory: str) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    for name, pipeline in summary.pipelines.items():
        told = reward(pipeline.first_reward, pipeline.last_reward)
        steps = f"{pipeline.steps}/{pipeline.of}" if pipeline.of and pipeline.steps != pipeline.of else pipeline.steps
        row = (steps, pipeline.samples, told, f"v{pipeline.weight_version}", pipeline.pauses, pipeline.resumes, pipeline.restarts)
        table.add_row(cell(name, "bold"), *(cell(value) for value in row), cell(f"{pipeline.waited_s:.1f} s"))
    return Group(table, *_reasons(summary, directory), _verdict(summary), _unbroken(directory, "dim"))


def _reasons(summary: Summary, directory: str) -> Iterator[Text]:
    """Yield a line for each pipeline that failed, and for what else somebody must know."""
    for name, pipeline in summary.pipelines.items():
        if pipeline.outcome == "failed":
            yield _unbroken(f"{name} failed: {pipeline.why} (see {directory}/{pipeline.log})", "red")
    yield from (_unbroken(note, "yellow") for note in summary.notes)


def _unbroken(text: str, style: str) -> Text:
    """Return one line however long it is, because it is copied and searched for."""
    return Text(one_line(text, 1000), style=style, no_wrap=True, overflow="ignore")


def _verdict(summary: Summary) -> Text:
    style = "bold green" if summary.exit == ExitCode.DONE else "bold red"
    starts = f" in {summary.starts} starts" if summary.starts > 1 else ""
    text = Text(f"{_meaning(summary)} (exit {summary.exit}) after {duration(summary.wall_s)}{starts}.", style=style)
    if summary.lost_log_lines:
        text.append(f" {summary.lost_log_lines} log lines were lost.", style="yellow")
    return text


def _meaning(summary: Summary) -> str:
    """Return the sentence of the exit code, made as exact as this run allows."""
    pipelines = summary.pipelines
    short = [f"{name} {pipeline.steps} of {pipeline.of}" for name, pipeline in pipelines.items() if pipeline.steps < pipeline.of]
    match summary.exit:
        case ExitCode.DONE if not short:
            return "Every pipeline did all its steps"
        case ExitCode.DONE:
            return f"Every trainer ended by itself with exit code 0; steps that are known to be done: {', '.join(short)}"
        case ExitCode.PIPELINE_FAILED:
            failed = [name for name, pipeline in pipelines.items() if pipeline.outcome == "failed"]
            others = len(pipelines) - len(failed)
            return f"{' and '.join(failed) or 'A pipeline'} failed for good" + ("; the others went on" if others else "")
        case ExitCode.STOPPED if summary.stopped_by:
            return f"Stopped before its end: {one_line(summary.stopped_by)}. `run --resume` continues"
    try:
        meaning = ExitCode(summary.exit).meaning
    except ValueError:
        meaning = "unknown exit code"
    return meaning[0].upper() + meaning[1:]


def show(summary: Summary, directory: str, console: Console | None = None) -> None:
    console = console if console is not None else Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200, no_color=True)
    console.print(render(summary, directory), crop=False)
