"""This module reads a TOML file: it returns a `Config`, or raises a `ConfigError` with all the mistakes of the file at once.

It starts nothing, and imports nothing that the file names.

`load` never raises anything but `ConfigError`, whatever the bytes of the file are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.inspect import StructType

from supervisor.config.kinds import registry
from supervisor.config.machine import premises
from supervisor.config.schema import rules
from supervisor.config.schema.findings import Finding, GpuFact
from supervisor.config.schema.tables import Config, EngineTable, GatewayTable, HostTable, PipelineTable, TrainerTable
from supervisor.config.schema.toml_text import shown
from supervisor.config.schema.typecheck import BAD, describe, read
from supervisor.config.sources import Places, read_all
from supervisor.errors import ConfigError, Mistake, SetUpError
from trainers.protocol.ids import PipelineId

_MOST: Final = 100
"""Mistakes that are shown of one file."""

Inventory = Callable[[HostTable], Sequence[GpuFact]]
"""An inventory looks up the GPUs that `[host]` names, in its order. Raises SetUpError when one is not there."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A sound configuration. `name` is the file's stem; `source` its bytes; `gpus` is empty when no inventory was asked."""

    config: Config
    path: Path
    name: str
    source: bytes
    gpus: tuple[GpuFact, ...] = ()


def load(path: str | Path, inventory: Inventory | None = None, *, over: Sequence[Path] = (), settings: Sequence[str] = ()) -> Loaded:
    """Reads a TOML file, or the `config.resolved.json` of an attempt. With an `inventory` the GPUs are looked up too. Raises ConfigError.

    Further files (`over`) change what they name, and then the `settings` (`KEY=VALUE`) do; name and folder are those of the last file.
    """
    read_in = read_all([Path(path), *over], settings)
    found = list(read_in.findings)
    config, draft = _draft(read_in.table, found)
    unread = {key for finding in found for key in (finding.key, *finding.also)}
    host = None if unread & _GPU_KEYS else draft.host
    gpus, later = _gpus(host, inventory)
    draft = rules.Draft(draft.host, draft.pipelines, len(gpus) if gpus else rules.gpu_count(host))
    later += rules.findings(draft, registry.findings)
    later += premises.findings(draft, read_in.base, read_in.name, ask=inventory is not None, gpus=gpus)
    later += premises.notify_findings(config.notify, read_in.base) if config is not None else ()
    found += [finding for finding in later if not _consequence(finding, unread)]
    if found:
        raise ConfigError(_mistakes(found, read_in.places, draft))
    assert config is not None, "no finding, and no configuration"
    return Loaded(premises.resolved(config, read_in.base, gpus), read_in.path, read_in.name, read_in.source, gpus)


def _gpus(host: HostTable | None, inventory: Inventory | None) -> tuple[tuple[GpuFact, ...], list[Finding]]:
    """Returns the GPUs of the host, where they can be looked up, and what is wrong with them."""
    if inventory is None or host is None or (host.gpus is None) == (host.virtual is None):
        return (), []
    try:
        return tuple(inventory(host)), []
    except SetUpError as error:
        remedy = f"{error.remedy}." if error.remedy else "`nvidia-smi -L` lists the GPUs of this machine."
        return (), [Finding("host.gpus", host.gpus, error.problem, remedy)]


_GPU_KEYS: Final = {"host", "host.gpus", "host.virtual"}


def _draft(table: dict[str, Any], found: list[Finding]) -> tuple[Config | None, rules.Draft]:
    """Returns everything that has the right shape; what has not is appended to `found`."""
    config = read(_described(Config), table, "", found.append)
    quiet: list[Finding] = []
    host = read(describe(HostTable), table.get("host", {}), "host", quiet.append)
    entries = table.get("pipeline")
    entries = entries if isinstance(entries, list) else []
    pipelines = tuple(_draft_pipeline(entry, f"pipeline[{i}]") for i, entry in enumerate(entries[:_MOST]) if isinstance(entry, dict))
    if table.get("pipeline") == []:
        found.append(Finding("pipeline", [], "is empty", "Write at least one [[pipeline]] table."))
    return None if config is BAD else config, rules.Draft(None if host is BAD else host, pipelines)


def _draft_pipeline(entry: dict[str, Any], path: str) -> rules.DraftPipeline:
    quiet: list[Finding] = []
    kinds = (("engine", EngineTable), ("trainer", TrainerTable), ("gateway", GatewayTable))
    given = {key: entry.get(key, {} if kind is GatewayTable else None) for key, kind in kinds}
    parts = [read(_described(kind), given[key], f"{path}.{key}", quiet.append) for key, kind in kinds]
    name = read(_NAME, entry.get("name"), f"{path}.name", quiet.append)
    engine, trainer, gateway = (None if part is BAD else part for part in parts)
    return rules.DraftPipeline(path, None if name is BAD else PipelineId(name), engine, trainer, gateway)


def _described(table: type[msgspec.Struct]) -> StructType:
    """Describes a table, with the kinds of engines that there are."""
    return describe(table, {EngineTable: {"kind": registry.KINDS}})


_NAME: Final = next(field.type for field in describe(PipelineTable).fields if field.name == "name")


def _consequence(finding: Finding, unread: set[str]) -> bool:
    """Returns whether the finding was concluded from a default that stands for something unreadable."""
    return any(other == key or other.startswith(f"{key}[") for key in (finding.key, *finding.also) for other in unread)


def _place(key: str, names: Mapping[str, str]) -> str:
    """`pipeline[1].engine.gpus` as `pipeline code: engine.gpus`, where its name could be read."""
    path, _, inner = key.partition(".")
    return f"pipeline {names[path]}: {inner}" if path in names and inner else ""


def _mistakes(found: Sequence[Finding], places: Places, draft: rules.Draft) -> list[Mistake]:
    names = {pipeline.path: pipeline.name for pipeline in draft.pipelines if pipeline.name is not None}

    def as_mistake(finding: Finding) -> Mistake:
        value = "" if finding.value == "" else shown(finding.value)
        file, line = places.of(finding.key)
        return Mistake(file, finding.key, value, finding.problem, finding.remedy, line, _place(finding.key, names))

    mistakes = sorted(map(as_mistake, found[:_MOST]), key=lambda mistake: mistake.line or 0)
    if len(found) > _MOST:
        mistakes.append(Mistake(places.file, "", "", f"has {len(found) - _MOST} more mistakes", "Correct these first."))
    return mistakes
