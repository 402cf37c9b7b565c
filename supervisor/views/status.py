"""This module shows a status as tables, and why a pipeline has its engines. Text of children is made plain and never read as markup."""

from rich.console import Console
from rich.text import Text

from supervisor.observe.explanation import PipelineExplanation
from supervisor.observe.sanitize import one_line
from supervisor.observe.status import EngineView, FailureView, GpuView, PipelineView, Status
from supervisor.observe.waiting_reasons import priority_words, role_words
from supervisor.scheduler.spec import Priority
from supervisor.views.table import Column, Row, render
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

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
_LONGEST_REMARK = 1000


def cell(value: object, style: str = "") -> Text:
    """Return one table cell; None is a dash."""
    return Text("-" if value is None or value == "" else one_line(str(value), 120), style=style or "")


def gib(size: int | None) -> str:
    if size is None:
        return "unmeasured"
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 10 << 20 or not size else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def ago(seconds: float) -> str:
    """Return `8 s ago`, `3 min ago`, `2 h ago`, `4 days ago`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and unit != "days"):
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def reward(first: float | None, last: float | None) -> str | None:
    if last is None:
        return None
    return f"{last:.3f}" if first is None else f"{first:.3f} → {last:.3f}"


def lines(status: Status, width: int | None) -> list[Text]:
    """Return all of it: pipelines, processes, GPUs. `width` is the terminal's; None is a pipe, where nothing is left out."""
    head = Text(f"{one_line(status.run, 120)}, up {duration(status.uptime_s)}", style="bold")
    if status.stopping:
        head.append("  stopping", style="bold yellow")
    return [head, Text(), *_pipelines(status, width), Text(), *_groups(status, width), Text(), *_gpus(status, width)]


def _row(cells: tuple[object, ...], remarks: tuple[str, ...], state: str, remark_style: str = "") -> Row:
    """Return a row. The second cell is the `state`."""
    texts = ["" if value is None else one_line(str(value), 120) for value in cells]
    return Row(texts, [one_line(remark, _LONGEST_REMARK) for remark in remarks], ("bold", _STYLES.get(state, "")), remark_style)


def _pipelines(status: Status, width: int | None) -> list[Text]:
    columns = (
        Column("pipeline"), Column("state"), Column("step", True), Column("samples", True, 4), Column("awake", True, 5),
        Column("reward", False, 3, lambda text: text.rpartition(" ")[2]), Column("weights", True, 2), Column("restarts", True, 1),
    )  # fmt: skip
    rows = []
    for view in status.pipelines:
        waits = view.waits_for or view.trainer.waits_for
        cells = (
            view.name,
            view.state,
            f"{view.step}/{view.steps}",
            f"{view.samples_done}/{view.target}" if view.target else None,
            f"{view.engines_awake}/{len(view.engines)}",
            reward(view.first_reward, view.reward),
            f"v{view.weight_version}",
            view.restarts or None,
        )
        rows.append(_row(cells, (view.why, f"waits for {waits}" if waits else ""), view.state, "red" if view.why else "yellow"))
    return render("Pipelines", columns, rows, width)


def _groups(status: Status, width: int | None) -> list[Text]:
    columns = (
        Column("group"), Column("state"), Column("incarnation", True, 2), Column("pids", False, 1, _first), Column("GPUs", False, 6, _first),
        Column("weights", True, 4), Column("in flight", True, 5), Column("restarts", True, 3),
    )  # fmt: skip
    rows = []
    for view in status.pipelines:
        rows.append(_trainer_row(view))
        gateway = view.gateway
        state = gateway.state if gateway.pid is None or gateway.state != "cold" else "serving"
        cells = (str(GatewayId(PipelineId(view.name))), state, gateway.incarnation, gateway.pid, None, None, None, None)
        rows.append(_row(cells, (gateway.url, _failure(gateway.failure)), state))
        rows += [_engine_row(view.name, engine) for engine in view.engines]
    return render("Processes", columns, rows, width)


def _trainer_row(view: PipelineView) -> Row:
    trainer = view.trainer
    holds = f"holds its GPUs for {', '.join(map(role_words, trainer.holds))}" if trainer.holds else ""
    cells = (
        str(TrainerId(PipelineId(view.name))), trainer.state, trainer.incarnation, _numbers(trainer.pids), _numbers(trainer.gpus), None, None,
        trainer.restarts or None,
    )  # fmt: skip
    return _row(cells, (holds, trainer.note, _failure(trainer.failure)), trainer.state)


def _engine_row(pipeline: str, engine: EngineView) -> Row:
    version = f"v{engine.version}" if engine.version is not None else None
    cells = (
        str(EngineId(PipelineId(pipeline), engine.rank)), engine.state, engine.incarnation, _numbers(engine.pids), _numbers(engine.gpus), version,
        engine.in_flight or None, engine.restarts or None,
    )  # fmt: skip
    return _row(cells, (engine.note, _failure(engine.failure)), engine.state)


def _failure(failure: FailureView | None) -> str:
    """Say what went wrong last. When it is well again, that is history, and the text says so."""
    if failure is None:
        return ""
    if failure.asked:
        return f"{failure.reason} {ago(failure.ago_s)}"
    return f"{'restarted' if failure.over else 'failed'} {ago(failure.ago_s)}: {failure.reason}"


def _numbers(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _first(text: str) -> str:
    """Shorten a list of eight to `4711 +7`."""
    first, *more = text.split()
    return f"{first} +{len(more)}" if more else first


def _gpus(status: Status, width: int | None) -> list[Text]:
    columns = (Column("GPU", True), Column("holder"), Column("as", False, 2), Column("memory", True), Column("name", False, 1))
    rows = []
    for gpu in status.gpus:
        cells = (gpu.id, gpu.holder, _priority(gpu.priority), _memory(gpu), gpu.name)
        others = [f"{group} keeps {gib(held)}" for group, held in gpu.held_bytes.items() if group != gpu.holder]
        remarks = (f"withheld: {gpu.fenced}" if gpu.fenced else "", ", ".join(others))
        rows.append(_row(cells, remarks, "", "bold red" if gpu.fenced else "dim"))
    return render("GPUs", columns, rows, width)


def _priority(name: str | None) -> str | None:
    """Return a priority as people call it."""
    known = Priority.__members__.get((name or "").upper())
    return name if known is None else priority_words(known)


def _memory(gpu: GpuView) -> str:
    used = gib(gpu.used_bytes)
    return used if gpu.used_bytes is None or gpu.total_bytes is None else f"{used} of {gib(gpu.total_bytes)}"


def show(status: Status, console: Console | None = None) -> None:
    """Print it, as wide as the terminal; on a pipe nothing is left out or wrapped."""
    console = console if console is not None else Console()
    width = console.width if console.is_terminal else None
    for line in lines(status, width):
        console.print(line, soft_wrap=True, highlight=False)


def why_lines(found: PipelineExplanation, width: int | None) -> list[Text]:
    """Return one line for the pipeline, and a row with the planner's reason for each engine. `width` is as in `lines`."""
    columns = (Column("engine"), Column("GPUs"), Column("awake"), Column("in the plan"))
    rows = []
    for engine in found.engines:
        cells = (engine.engine, _numbers(engine.gpus), "yes" if engine.awake else "no", "yes" if engine.planned else "no")
        rows.append(Row(cells, (engine.text,), ("bold",), "dim"))
    return [Text(_why_head(found), style="bold"), Text(), *render("Engines", columns, rows, width)]


def _why_head(found: PipelineExplanation) -> str:
    engines = f"{len(found.engines)} engine{'s' if len(found.engines) != 1 else ''}"
    awake = f"awake are {found.awake}"
    if not found.unfinished:
        return f"{found.pipeline} has no unfinished samples. Of its {engines}, {awake}."
    work = f"{found.unfinished} unfinished samples, which can fill {found.cap} of its {engines}"
    return f"{found.pipeline} has {work}. The plan gives it {found.planned}; {awake}."


def show_why(found: PipelineExplanation) -> None:
    """Print it, as wide as the terminal; on a pipe no line is wrapped."""
    console = Console()
    for line in why_lines(found, console.width if console.is_terminal else None):
        console.print(line, soft_wrap=True, highlight=False)
