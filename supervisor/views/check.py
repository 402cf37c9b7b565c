"""`bin/supervise check FILE` shows the picture of `supervisor.config.fit` as tables, and reads from the machine what the picture needs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engines.gateway.model_files import chat_template
from supervisor.attempt.directory import runs_directory
from supervisor.config.fit import Claim, GpuPlan, Machine, Part, Picture, Verdict, picture
from supervisor.config.load import Loaded
from supervisor.config.machine.host_room import memory_free, shared_memory
from supervisor.config.machine.model_files import model_size
from supervisor.config.schema.findings import GpuFact
from supervisor.config.schema.tables import Config
from supervisor.errors import Mistake
from supervisor.observe.sanitize import one_line
from supervisor.views.status import cell, gib
from trainers.protocol.ids import GpuId

_STYLES: dict[Verdict, str] = {"fits": "green", "does not fit": "bold red", "unmeasured": "dim"}


def look(loaded: Loaded) -> Picture:
    """Return the picture of a configuration on this machine. Starts nothing."""
    config = loaded.config
    sizes = {pipe.name: model_size(Path(pipe.engine.model)) if isinstance(pipe.engine.model, str) else None for pipe in config.pipeline}
    gpus = loaded.gpus or virtual_gpus(config)
    shm = shared_memory(config.host.shm)
    machine = Machine(gpus, memory_free(), shm.free, dict(os.environ), shm.total)
    found = picture(config, machine, sizes)
    return replace(found, notes=(*found.notes, *_templates(config)))


def _templates(config: Config) -> Iterator[str]:
    """Yield what is wrong with chat templates: that costs chat requests, and no pipeline."""
    for pipe in config.pipeline:
        for problem in chat_template.problems(Path(pipe.engine.model)) if isinstance(pipe.engine.model, str) else ():
            yield f"{pipe.name}: its chat template does not compile, so requests for chats will be refused ({problem})."


def virtual_gpus(config: Config) -> tuple[GpuFact, ...]:
    """Return the GPUs that the file alone names; none for "auto"."""
    host = config.host
    if host.virtual is not None:
        return tuple(GpuFact(GpuId(gpu), "virtual", None) for gpu in range(host.virtual))
    return tuple(GpuFact(GpuId(i), str(gpu), None) for i, gpu in enumerate(host.gpus)) if isinstance(host.gpus, list) else ()


def render(loaded: Loaded, found: Picture) -> RenderableType:
    parts: list[RenderableType] = [_what(found), _map(loaded.config, found), _fit(found), _rest(loaded, found)]
    parts += [Text(f"Note: {one_line(note, 400)}", style="yellow") for note in found.notes]
    good = found.fits
    text = (
        "The configuration is sound; nothing was started."
        if good
        else "The configuration is sound, but it does not fit (see above); nothing was started."
    )
    return Group(*parts, Text(text, style="bold green" if good else "bold red"))


def _plain_table(title: str, columns: Sequence[str]) -> Table:
    return Table(
        *columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim"
    )


def _what(found: Picture) -> Table:
    """Show what is started, how often, with which program."""
    table = _plain_table("What runs", ["", "how many", "what", "with"])
    for part in found.parts:
        name = "engine" if part.steps is None else "rank"
        each = "" if part.gpus_each == 1 else f" of {part.gpus_each} GPUs"
        program = f"{part.program}, by Trainshed's own Python" if part.own_python else part.program
        many = f"{part.count} {name}{'s' if part.count > 1 else ''}{each}"
        table.add_row(_long(part.who), cell(many), _long(program), cell(", ".join(_settings(part))))
    return table


def _settings(part: Part) -> Iterator[str]:
    if part.slots is not None:
        yield f"{part.slots} slots"
        yield f"context {part.context} tokens" if part.context is not None else "context unknown"
    if part.kv_tokens is not None:
        yield f"KV pool {part.kv_tokens} tokens"
    if part.steps is not None:
        yield f"{part.steps} step{'s' if part.steps != 1 else ''}"


def _map(config: Config, found: Picture) -> Table:
    """Show each GPU with the pipelines that may hold it, the higher priority first."""
    table = _plain_table("Who may hold which GPU", ["GPU", "name", *(pipeline.name for pipeline in config.pipeline)])
    for plan in found.gpus:
        claims = {pipeline.name: [claim for claim in plan.claims if claim.pipeline == pipeline.name] for pipeline in config.pipeline}
        table.add_row(cell(plan.gpu.id), cell(plan.gpu.name), *(cell(_claims(mine)) for mine in claims.values()))
    return table


def _claims(claims: Sequence[Claim]) -> str:
    return ", ".join(f"engine {claim.holder.rpartition('/')[2]}" if claim.role == "rollout" else claim.role for claim in claims)


def _fit(found: Picture) -> Table:
    table = _plain_table("Does it fit", ["where", "needs at least", "has", "verdict"])
    for plan in found.gpus:
        table.add_row(cell(f"GPU {plan.gpu.id}"), cell(gib(plan.needs)), cell(_has(plan)), cell(plan.verdict, _STYLES[plan.verdict]))
    for room in found.rooms:
        table.add_row(cell(room.what), cell(gib(room.needs)), cell(gib(room.has)), cell(room.verdict, _STYLES[room.verdict]))
    return table


def _has(plan: GpuPlan) -> str:
    return (
        gib(plan.gpu.total_bytes)
        if plan.gpu.total_bytes is not None
        else "no limit"
        if plan.gpu.name.startswith("virtual")
        else "unmeasured"
    )


def _rest(loaded: Loaded, found: Picture) -> Table:
    table = _plain_table("Where and with what", ["", ""])
    table.add_row(cell("run directory"), _long(str(runs_directory(loaded.config) / loaded.name / "attempt_N")))
    table.add_row(cell("ports"), cell(f"{found.ports[0]} to {found.ports[1]} on 127.0.0.1"))
    if (port := loaded.config.host.metrics_port) is not None:
        table.add_row(cell("metrics"), cell(f"http://127.0.0.1:{port}/metrics"))
    everywhere = set.intersection(*(set(variables.dropped) for variables in found.variables)) if found.variables else set()
    for variables in found.variables:
        children = "every child" if len(found.variables) == 1 else ", ".join(variables.children)
        gets = "get" if len(found.variables) > 1 and len(variables.children) > 1 else "gets"
        table.add_row(_long(f"variables that {children} {gets}"), _long(" ".join(variables.kept) or "-"))
        if more := [name for name in variables.dropped if name not in everywhere]:
            table.add_row(cell("dropped there alone"), _long(" ".join(more)))
    table.add_row(cell("and those dropped"), _long(" ".join(sorted(everywhere)) or "-"))
    return table


def _long(text: str) -> Text:
    return Text(one_line(text, 4000), overflow="fold")


def show(loaded: Loaded, found: Picture, console: Console | None = None) -> None:
    console = console if console is not None else Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=160, no_color=True)
    console.print(render(loaded, found))


def short_of(found: Picture) -> list[str]:
    """Return what is too small, one sentence each."""
    short = [(f"GPU {plan.gpu.id}", plan.needs, plan.gpu.total_bytes) for plan in found.gpus if plan.verdict == "does not fit"]
    short += [(room.what, room.needs, room.has) for room in found.rooms if room.verdict == "does not fit"]
    return [f"{what} needs {gib(needs)} at least and has {gib(has)}" for what, needs, has in short]


def show_mistakes(mistakes: Sequence[Mistake], console: Console | None = None) -> None:
    """Print every mistake on a line of its own: where, what, why, and what to do."""
    console = console if console is not None else Console(stderr=True)
    for mistake in mistakes:
        text = Text(one_line(mistake.file if mistake.line is None else f"{mistake.file}:{mistake.line}", 500), style="dim")
        text.append(": ")
        if mistake.key:
            text.append(one_line(mistake.place or mistake.key), style="bold")
            text.append(f" = {one_line(mistake.value)}: " if mistake.value else ": ")
        text.append(one_line(mistake.problem), style="red")
        text.append(f". {one_line(mistake.remedy)}")
        console.print(text, soft_wrap=True)
    console.print(f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}; nothing was started.", style="bold red", highlight=False)
