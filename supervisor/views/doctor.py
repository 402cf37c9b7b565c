"""`bin/supervise doctor` shows a diagnosis: one line for each thing that was looked at, and below it what to do."""

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from supervisor.observe.diagnosis import Diagnosis, Finding, State
from supervisor.observe.sanitize import one_line

_MARKS: dict[State, tuple[str, str]] = {"ok": ("well", "green"), "warning": ("look", "yellow"), "bad": ("BAD ", "bold red")}
_TITLES = {
    "driver": "Driver",
    "card": "Cards",
    "cycle": "Allocation and release, measured",
    "links": "Links",
    "libraries": "Libraries",
    "host": "Host",
    "fit": "What fits",
}


def render(found: Diagnosis) -> list[Text]:
    """Return the lines: by area, in the order in which things must be well."""
    lines: list[Text] = []
    for area, title in _TITLES.items():
        if mine := [finding for finding in found.findings if finding.area == area]:
            lines += [Text(title, style="bold"), *(line for finding in mine for line in _finding(finding))]
    lines.append(Text(_verdict(found), style="bold green" if found.well else "bold red"))
    return lines


def _finding(finding: Finding) -> Iterator[Text]:
    mark, style = _MARKS[finding.state]
    line = Text("  ")
    line.append(mark, style=style)
    line.append(f"  {one_line(finding.subject, 200)}: {one_line(finding.said, 600)}")
    yield line
    if finding.remedy:
        yield Text(f"        > {one_line(finding.remedy, 400)}", style=style if finding.state != "ok" else "dim")


def _verdict(found: Diagnosis) -> str:
    bad = sum(finding.state == "bad" for finding in found.findings)
    if bad:
        return f"{bad} thing{'s' if bad > 1 else ''} must be mended before a run on GPUs; docs/gpu.md says what each line means."
    if not found.cards:
        return "No GPU was looked at: runs on virtual GPUs (`virtual = 4` in [host]) need none."
    return "Fit for runs on GPUs. `bin/supervise check FILE` says whether a configuration fits."


def show(found: Diagnosis, console: Console | None = None) -> None:
    console = console if console is not None else Console()
    for line in render(found):
        console.print(line, soft_wrap=True, highlight=False)
