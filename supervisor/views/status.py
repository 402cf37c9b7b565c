"""A snapshot as tables. Text of children is made plain and never read as markup."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from supervisor.runtime.plain import one_line
from supervisor.runtime.snapshot import EngineView, PipelineView, Snapshot

_STYLES = {
    "serving": "green",
    "paused": "dim",
    "cold": "dim",
    "quarantined": "red",
    "stuck": "bold red",
    "retired": "bold red",
    "failed": "bold red",
    "done": "green",
}


def cell(value: object, style: str = "") -> Text:
    """One table cell; None is a dash."""
    return Text("-" if value is None or value == "" else one_line(str(value), 120), style=style or "")


def gib(size: int | None) -> str:
    if size is None:
        return "unmeasured"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def reward(first: float | None, last: float | None) -> str | None:
    if last is None:
        return None
    return f"{last:.3f}" if first is None else f"{first:.3f} → {last:.3f}"


def render(snapshot: Snapshot) -> RenderableType:
    """The whole picture: pipelines, engines, GPUs."""
    head = Text(f"{one_line(snapshot.run, 120)}, up {duration(snapshot.uptime_s)}", style="bold")
    if snapshot.stopping:
        head.append("  stopping", style="bold yellow")
    gap = Text("")
    return Group(head, gap, _pipelines(snapshot), gap, _groups(snapshot), gap, _gpus(snapshot))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in ("step", "samples", "awake", "weights", "restarts", "in flight") else "left")
    return table


def _pipelines(snapshot: Snapshot) -> Table:
    table = _table("Pipelines", "pipeline", "state", "step", "samples", "awake", "reward", "weights", "restarts", "waits for", "url")
    for view in snapshot.pipelines:
        table.add_row(
            cell(view.name, "bold"),
            cell(view.state, _STYLES.get(view.state, "")),
            cell(f"{view.step}/{view.steps}"),
            cell(f"{view.samples_done}/{view.target}" if view.target else None),
            cell(f"{view.engines_awake}/{len(view.engines)}"),
            cell(reward(view.first_reward, view.reward)),
            cell(f"v{view.weight_version}"),
            cell(view.restarts),
            cell(view.waits_for or view.trainer.waits_for),
            cell(view.gateway.url),
        )
    return table


def _groups(snapshot: Snapshot) -> Table:
    table = _table("Processes", "group", "state", "incarnation", "pids", "GPUs", "weights", "in flight", "restarts", "note")
    for view in snapshot.pipelines:
        _trainer_row(table, view)
        gateway = view.gateway
        state = "serving" if gateway.pid is not None else "cold"
        pid = gateway.pid if gateway.pid is not None else None
        table.add_row(
            cell(f"{view.name}/gateway"), cell(state, _STYLES[state]), cell(gateway.incarnation), cell(pid), *(cell(None) for _ in range(5))
        )
        for engine in view.engines:
            _engine_row(table, view.name, engine)
    return table


def _trainer_row(table: Table, view: PipelineView) -> None:
    trainer = view.trainer
    holds = f"holds {', '.join(trainer.holds)}" if trainer.holds else None
    waits = f"waits for {trainer.waits_for}" if trainer.waits_for else None
    note = "; ".join(filter(None, (holds, waits)))
    row = (f"{view.name}/trainer", trainer.state, trainer.incarnation, _numbers(trainer.pids), None, None, None, None, note)
    table.add_row(*(cell(value, _STYLES.get(str(value), "")) for value in row))


def _engine_row(table: Table, pipeline: str, engine: EngineView) -> None:
    version = f"v{engine.version}" if engine.version is not None else None
    row = (f"{pipeline}/engine/{engine.rank}", engine.state, engine.incarnation, _numbers(engine.pids), _numbers(engine.gpus), version)
    rest = (engine.in_flight or None, engine.restarts or None, engine.note)
    table.add_row(*(cell(value, _STYLES.get(str(value), "")) for value in (*row, *rest)))


def _numbers(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _gpus(snapshot: Snapshot) -> Table:
    table = _table("GPUs", "GPU", "name", "holder", "as", "memory", "note")
    for gpu in snapshot.gpus:
        note = f"withheld: {gpu.fenced}" if gpu.fenced else None
        table.add_row(cell(gpu.id), cell(gpu.name), cell(gpu.holder), cell(gpu.priority), cell(gib(gpu.used_bytes)), cell(note, "bold red"))
    return table


def show(snapshot: Snapshot, console: Console | None = None) -> None:
    """Prints it; on a pipe the tables keep their full width."""
    console = console if console is not None else Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200, no_color=True)
    console.print(render(snapshot))
