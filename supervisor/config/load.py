"""This module reads a TOML file: it returns a `Config`, or raises a `ConfigError` with all the mistakes of the file at once.

It starts nothing, and imports nothing that the file names.

`load` never raises anything but `ConfigError`, whatever the bytes of the file are.
"""

import os
import re
import stat
import tomllib
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
from supervisor.config.schema.line_numbers import line_of, lines
from supervisor.config.schema.tables import Config, EngineTable, GatewayTable, HostTable, PipelineTable, TrainerTable
from supervisor.config.schema.toml_text import shown
from supervisor.config.schema.typecheck import BAD, describe, read
from supervisor.errors import ConfigError, Mistake, SetUpError
from trainers.protocol.ids import PipelineId

LIMIT: Final = 256 * 1024
"""Bytes of a configuration file."""
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


def load(path: str | Path, inventory: Inventory | None = None) -> Loaded:
    """Reads a TOML file, or the `config.resolved.json` of an attempt. With an `inventory` the GPUs are looked up too. Raises ConfigError."""
    file = Path(path)
    source = _bytes(file)
    base = _folder(file)
    record = file.name == RESOLVED
    text, table = _parse_json(source, str(path)) if record else _parse(source, str(path))
    found: list[Finding] = []
    config, draft = _draft(table, found)
    unread = {key for finding in found for key in (finding.key, *finding.also)}
    host = None if unread & _GPU_KEYS else draft.host
    gpus, later = _gpus(host, inventory)
    draft = rules.Draft(draft.host, draft.pipelines, len(gpus) if gpus else rules.gpu_count(host))
    later += rules.findings(draft, registry.findings)
    name = base.parent.name if record else _stem(file)
    later += premises.findings(draft, base, name, ask=inventory is not None, gpus=gpus)
    found += [finding for finding in later if not _consequence(finding, unread)]
    if found:
        raise ConfigError(_mistakes(found, str(path), lines(text), draft))
    assert config is not None, "no finding, and no configuration"
    return Loaded(premises.resolved(config, base, gpus), file, name, source, gpus)


RESOLVED: Final = "config.resolved.json"


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


def _folder(file: Path) -> Path:
    try:
        return Path(os.path.abspath(file)).parent
    except OSError as error:  # the working directory was removed under us
        raise _broken(file, f"the working directory is gone: {error.strerror}", "Change to another directory.") from error


def _stem(file: Path) -> str:
    """Returns the name of the runs of this file, safe as a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", file.stem).strip(".-")[:64] or "run"


def _bytes(file: Path) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _broken(file, f"cannot be read: {reason}", "Give the path of a TOML file.") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _broken(file, "is not a file", "Give the path of a TOML file.")
        source = b""
        while len(source) <= LIMIT and (more := os.read(descriptor, LIMIT + 1 - len(source))):
            source += more
    except OSError as error:
        raise _broken(file, f"cannot be read: {error.strerror}", "Give the path of a TOML file.") from error
    finally:
        os.close(descriptor)
    if len(source) > LIMIT:
        raise _broken(file, f"has more than {LIMIT // 1024} KiB", "This is no configuration of ours.")
    return source


def _parse(source: bytes, file: str) -> tuple[str, dict[str, Any]]:
    try:
        text = source.decode("utf-8-sig")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = source[: error.start].count(b"\n") + 1
        raise _broken(file, f"is not UTF-8 (byte {error.start})", "Save it as UTF-8.", line) from error
    except RecursionError as error:
        raise _broken(file, "is nested too deeply", "This is no configuration of ours.") from error
    except (
        ValueError
    ) as error:  # TOMLDecodeError, which has no field for the line before Python 3.14; a number of 5,000 digits gives the plain one
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        raise _broken(file, f"is not TOML: {error}", "Correct the syntax (https://toml.io).", int(at[1]) if at else None) from error


def _parse_json(source: bytes, file: str) -> tuple[str, dict[str, Any]]:
    """Reads our own record; what is null there was not given."""
    try:
        table = msgspec.json.decode(source, type=dict[str, Any])
        return "", {key: _given(value) for key, value in table.items() if value is not None}
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"is not the record of a configuration: {error}", "Resume with the configuration file itself.") from error


def _given(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _broken(file: str | Path, problem: str, remedy: str, line: int | None = None) -> ConfigError:
    return ConfigError([Mistake(str(file), "", "", problem, remedy, line)])


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


def _mistakes(found: Sequence[Finding], file: str, where: dict[str, int], draft: rules.Draft) -> list[Mistake]:
    names = {pipeline.path: pipeline.name for pipeline in draft.pipelines if pipeline.name is not None}

    def as_mistake(finding: Finding) -> Mistake:
        value = "" if finding.value == "" else shown(finding.value)
        return Mistake(file, finding.key, value, finding.problem, finding.remedy, line_of(finding.key, where), _place(finding.key, names))

    mistakes = sorted(map(as_mistake, found[:_MOST]), key=lambda mistake: mistake.line or 0)
    if len(found) > _MOST:
        mistakes.append(Mistake(file, "", "", f"has {len(found) - _MOST} more mistakes", "Correct these first."))
    return mistakes
