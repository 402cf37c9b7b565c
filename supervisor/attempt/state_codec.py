"""The state codec writes the scheduler's whole state as JSON and reads it back: a recording goes on from it when its beginning is lost.

Only our own record types can come of it, whoever wrote the file: nothing in it is run. Classes are named by the registry below, not by where
they lie today, so that old recordings can be replayed after a class has moved or been renamed.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from types import ModuleType
from typing import Any, Final

import msgspec

from engines.lifecycle import state
from supervisor.scheduler import actions, context, faults, inflight, leases, records, restarts, rollouts, scheduler, spec
from supervisor.scheduler.planning import costs, planner, reservations
from trainers.protocol import gateway_messages, ids, trainer_messages

_RECORDED_AS: Final[Mapping[str, ModuleType]] = {
    "engines.gateway.messages": gateway_messages,
    "engines.ids": ids,
    "engines.state": state,
    "supervisor.scheduler.actions": actions,
    "supervisor.scheduler.costs": costs,
    "supervisor.scheduler.desk": context,
    "supervisor.scheduler.faults": faults,
    "supervisor.scheduler.fleet": records,
    "supervisor.scheduler.inflight": inflight,
    "supervisor.scheduler.leases": leases,
    "supervisor.scheduler.planner": planner,
    "supervisor.scheduler.reservations": reservations,
    "supervisor.scheduler.restarts": restarts,
    "supervisor.scheduler.rollouts": rollouts,
    "supervisor.scheduler.scheduler": scheduler,
    "supervisor.scheduler.spec": spec,
    "trainers.messages": trainer_messages,
}
"""The module of each record under the name that recordings give it, which never changes; the module may move."""
_RENAMED: Final[Mapping[str, str]] = {
    "engines.state:Turn": "Transition",
    "supervisor.scheduler.desk:Desk": "Context",
    "supervisor.scheduler.fleet:TrainerTurn": "TrainerTransition",
}
"""The class of today for a recorded `module:class` that bears another name now."""
_FIELDS: Final[Mapping[type, Mapping[str, str]]] = {
    context.Context: {"fault_changes": "turns"},
    records.Engine: {"by_operator": "asked"},
    records.Gateway: {"by_operator": "asked"},
    records.Trainer: {"by_operator": "asked", "lease_ended_at": "left"},
    rollouts.Rollout: {"ordered": "asked", "announced": "told"},
    scheduler.Scheduler: {"_ctx": "desk"},
}
"""Of each class the fields that bear another name now: today's name, and the recorded one."""
_DROPPED: Final[Mapping[type, Mapping[str, Any]]] = {records.Trainer: {"fence_note": ""}}
"""Of each class the recorded fields that no record has any more, with the value that they always had."""
_ADDED: Final[Mapping[type, Mapping[str, Any]]] = {records.Engine: {"failed_with": None}}
"""Of each class the fields that old recordings do not have, with the value that is meant there and therefore not written."""
_SERIES: Final = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def _named() -> Iterator[tuple[str, type]]:
    old_names = {(recorded.partition(":")[0], today): recorded for recorded, today in _RENAMED.items()}
    for recorded, module in _RECORDED_AS.items():
        for name, kind in vars(module).items():
            if isinstance(kind, type) and (kind.__module__, kind.__name__) == (module.__name__, name):
                yield old_names.get((recorded, name), f"{recorded}:{name}"), kind


_KIND_OF: Final[Mapping[str, type]] = dict(_named())
_NAME_OF: Final[Mapping[type, str]] = {kind: name for name, kind in _KIND_OF.items()}
_FIELDS_OF_TODAY: Final = {kind: {recorded: today for today, recorded in fields.items()} for kind, fields in _FIELDS.items()}


class Damaged(ValueError):
    """The value is no state that this program has written."""


def plain(value: Any) -> Any:
    """Return `value` as plain JSON values. Raises TypeError for what is no part of a state."""
    if isinstance(value, Enum):
        return {"is": _name(type(value)), "value": value.value}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # what a child said may be no text
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {"is": "dict", "of": [[plain(key), plain(one)] for key, one in value.items()]}
    if isinstance(value, deque):
        return {"is": "deque", "of": [plain(one) for one in value], "most": value.maxlen}
    if isinstance(value, set | frozenset):  # in an order of their own, so that equal states are equal text
        return {"is": type(value).__name__, "of": sorted(map(plain, value), key=msgspec.json.encode)}
    if type(value).__name__ in _SERIES and type(value).__module__ == "builtins":
        return {"is": type(value).__name__, "of": [plain(one) for one in value]}
    return {"is": _name(type(value)), "has": {name: plain(one) for name, one in _fields(value)}}


def _name(kind: type) -> str:
    name = _NAME_OF.get(kind)
    if name is None:
        raise TypeError(f"{kind} is no part of a scheduler's state")
    return name


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = tuple(field.name for field in dataclasses.fields(value))
    else:
        names = tuple(vars(value))
    recorded, added = _FIELDS.get(type(value), {}), _ADDED.get(type(value), {})
    every = ((name, getattr(value, name)) for name in names)
    yield from ((recorded.get(name, name), one) for name, one in every if name not in added or one != added[name])
    yield from _DROPPED.get(type(value), {}).items()


def restored(value: Any) -> Any:
    """Return what `plain` was given. Raises Damaged."""
    try:
        return _restored(value)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind = value["is"]
    if kind == "dict":
        return {_restored(key): _restored(one) for key, one in value["of"]}
    if kind == "deque":
        return deque((_restored(one) for one in value["of"]), maxlen=value["most"])
    if kind in _SERIES:
        return _SERIES[kind](_restored(one) for one in value["of"])
    found = _kind(kind)
    if issubclass(found, Enum):
        return found(value["value"])
    fields = {name: _restored(one) for name, one in value["has"].items()}
    if issubclass(found, msgspec.Struct):
        return found(**fields)
    made = object.__new__(found)
    for name, one in _ADDED.get(found, {}).items():
        object.__setattr__(made, name, one)
    today = _FIELDS_OF_TODAY.get(found, {})
    for name in fields.keys() - _DROPPED.get(found, {}).keys():
        object.__setattr__(made, today.get(name, name), fields[name])
    return made


def _kind(name: str) -> type:
    """Return one of our own record types by its recorded name. Raises Damaged."""
    try:
        return _KIND_OF[name]
    except KeyError:
        raise Damaged(f"{name} is no part of a scheduler's state") from None
