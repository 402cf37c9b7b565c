"""The log sources of a run have the names that an operator writes: `p1`, `p1/engine/0`, `p1/trainer`, `p1/model`, `supervisor`, `prewarm`."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.errors import UsageError
from trainers.protocol.ids import parse_log_name

SUPERVISOR: Final = "supervisor"
PREWARM: Final = "prewarm"
_OWN: Final = (SUPERVISOR, PREWARM)
_KINDS: Final = ("model", "gateway", "trainer", "engine")
"""In the order in which they are shown."""
_LARGEST_CONFIG: Final = 4 << 20
_NAME: Final = r"(?P<pipeline>[a-z][a-z0-9_-]{0,31})"
_TARGET: Final = re.compile(rf"^{_NAME}(?:/(?:(?P<single>model|gateway)|(?P<kind>trainer|engine)(?:/(?P<rank>[0-9]{{1,6}}))?))?\Z")


@dataclass(frozen=True, slots=True)
class Source:
    """A source is the child, or the part of ours, that writes a log file. `kind` alone names what belongs to no pipeline."""

    kind: str
    pipeline: str | None = None
    rank: int | None = None
    member: int | None = None

    def __str__(self) -> str:
        return "/".join(str(part) for part in (self.pipeline, self.kind, self.rank, self.member) if part is not None)

    @property
    def timed(self) -> bool:
        """Return whether its lines are records of ours that say when they were written."""
        return self.kind in (SUPERVISOR, "gateway")

    @property
    def order(self) -> tuple[object, ...]:
        """Return a sort key: p2 comes before p10, and so do engines."""
        kind = _KINDS.index(self.kind) if self.kind in _KINDS else -1
        return (natural(self.pipeline or ""), kind, self.rank or 0, self.member or 0)


def natural(name: str) -> tuple[tuple[int, str | int], ...]:
    """Return a sort key by which numbers within a name are numbers."""
    return tuple((1, int(part)) if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name) if part)


def source_of(file: str) -> Source | None:
    """Return the source of a file in `logs/`; None when it is none of ours."""
    if file == f"{PREWARM}.log":
        return Source(PREWARM)
    name = parse_log_name(file)
    return None if name is None else Source(name.kind, name.pipeline, name.rank, name.member)


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection says what to show. All None is everything; `own` is `supervisor` or `prewarm`."""

    own: str | None = None
    pipeline: str | None = None
    kind: str | None = None
    rank: int | None = None

    def takes(self, source: Source) -> bool:
        """Return whether this child's file is wanted."""
        if self.own is not None:
            return source.kind == self.own
        return (
            self.pipeline in (None, source.pipeline)
            and self.kind in (None, source.kind)
            and (self.rank is None or self.rank == source.rank)
        )

    def takes_record(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record of the supervisor is wanted. What is logged of a pipeline counts for each of its parts."""
        if self.own is not None:
            return self.own == SUPERVISOR
        if self.pipeline is None:
            return True
        if record.get("pipeline") != self.pipeline:
            return False
        engine, group = record.get("engine"), record.get("group")
        if self.kind is None or (engine is None and group is None):
            return True
        if self.kind == "engine":
            return engine is not None and self.rank in (None, engine)
        return engine is None and group == self.kind


@dataclass(frozen=True, slots=True)
class Counts:
    """How many engines and ranks a pipeline has."""

    engines: int
    ranks: int

    def has(self, kind: str | None, rank: int | None) -> bool:
        return rank is None or rank < (self.engines if kind == "engine" else self.ranks)

    def names(self, pipeline: str) -> str:
        """Name the parts for people: `p1/engine/0 to p1/engine/3, p1/trainer/0, p1/gateway, p1/model`."""
        several = (_several(f"{pipeline}/engine", self.engines), _several(f"{pipeline}/trainer", self.ranks))
        return ", ".join((*filter(None, several), f"{pipeline}/gateway", f"{pipeline}/model"))


def _several(name: str, count: int) -> str:
    return "" if count == 0 else f"{name}/0" if count == 1 else f"{name}/0 to {name}/{count - 1}"


def parts_of(attempt: Path) -> dict[str, Counts]:
    """Return each pipeline of a run, in natural order: as it was configured, and by the logs that are there."""
    found: dict[str, Counts] = {}
    try:
        # no child of the run can make us wait
        descriptor = os.open(attempt / "config.resolved.json", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            config = msgspec.json.decode(file.read(_LARGEST_CONFIG))
        for pipeline in config["pipeline"]:
            engine = pipeline["engine"]
            found[str(pipeline["name"])] = Counts(len(engine["gpus"]) // int(engine["tp"]), len(pipeline["trainer"]["gpus"]))
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
        pass  # a run of another version, or a damaged one: its files say what there is
    try:
        files = os.listdir(attempt / "logs")
    except OSError:
        files = []
    for source in filter(None, map(source_of, files)):
        if source.pipeline is not None:
            known = found.get(source.pipeline, Counts(0, 0))
            count = 1 + (source.rank or 0)
            engines = count if source.kind == "engine" else 0
            ranks = count if source.kind == "trainer" else 0
            found[source.pipeline] = Counts(max(known.engines, engines), max(known.ranks, ranks))
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def select(attempt: Path, text: str | None) -> Selection:
    """Return what an operator's text selects of this run; None is all of it. Raises UsageError, which says what there is."""
    if text is None:
        return Selection()
    parts = parts_of(attempt)
    if text in _OWN and text not in parts:
        return Selection(own=text)
    run = f"{attempt.parent.name}/{attempt.name}"
    match = _TARGET.match(text)
    if match is None or match["pipeline"] not in parts:
        example = f"; of {(first := next(iter(parts)))}: {parts[first].names(first)}" if parts else ""
        raise UsageError(f"There is no {text!r} in {run}. It has {', '.join((*parts, *_OWN))}{example}.")
    pipeline, kind, rank = match["pipeline"], match["single"] or match["kind"], int(match["rank"]) if match["rank"] else None
    if not parts[pipeline].has(kind, rank):
        raise UsageError(f"There is no {text} in {run}. {pipeline} has {parts[pipeline].names(pipeline)}.")
    return Selection(pipeline=pipeline, kind=kind, rank=rank)
