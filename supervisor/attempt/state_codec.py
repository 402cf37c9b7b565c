"""The state codec writes the scheduler's whole state as JSON and reads it back: a recording goes on from it when its beginning is lost.

Only our own record types can come of it, whoever wrote the file: nothing in it is run. Classes are named by the registry below, not by where
they lie today, so that old recordings can be replayed after a class has moved or been renamed.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import ModuleType
from typing import Any, Final

import msgspec

from engines.lifecycle import state
from supervisor.scheduler import actions, context, engine_life, faults, inflight, leases, records, restarts, rollouts, scheduler, spec
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
    records.Gateway: {"by_operator": "asked"},
    rollouts.Rollout: {"ordered": "asked", "announced": "told"},
    scheduler.Scheduler: {"_ctx": "desk"},
}
"""Of each class the fields that bear another name now: today's name, and the recorded one."""
_NEWER: Final[Mapping[type, Mapping[str, Callable[[], Any]]]] = {
    actions.StopGroup: {"grace": lambda: None},
    actions.TellTrainer: {"rank": lambda: None},
    records.Pipeline: {"model_losses": int, "model_not_before": float},
    restarts.Budget: {"last_end": lambda: None, "ended_alike": bool},
    records.Trainer: {"joining": dict, "asked": dict, "left": dict, "processes": int},
    spec.TrainerSpec: {"processes": int},
    rollouts.Rollout: {"trajectories": bool, "ended": dict, "per_rank": bool, "joined": set, "left": set},
}
"""Of each class the fields that older recordings do not have, and what they are then; such a value is not written either."""
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


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, records.Engine):
        return _engine_fields(value).items()
    if isinstance(value, records.Trainer):
        return _trainer_fields(value).items()
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = tuple(field.name for field in dataclasses.fields(value))
    else:
        names = tuple(vars(value))
    recorded, newer = _FIELDS.get(type(value), {}), _NEWER.get(type(value), {})
    held = ((name, getattr(value, name)) for name in names)
    return ((recorded.get(name, name), one) for name, one in held if name not in newer or one != newer[name]())


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
    if found is records.Engine:
        return _engine(fields)
    if found is records.Trainer:
        return _trainer(fields)
    if issubclass(found, msgspec.Struct):
        return found(**fields)
    made = object.__new__(found)
    today = _FIELDS_OF_TODAY.get(found, {})
    for name, absent in _NEWER.get(found, {}).items():
        object.__setattr__(made, name, absent())
    for name, one in fields.items():
        object.__setattr__(made, today.get(name, name), one)
    return made


def _kind(name: str) -> type:
    """Return one of our own record types by its recorded name. Raises Damaged."""
    try:
        return _KIND_OF[name]
    except KeyError:
        raise Damaged(f"{name} is no part of a scheduler's state") from None


# -- records of today whose recorded form is a flat one


def _engine_fields(engine: records.Engine) -> dict[str, Any]:
    """An engine's life, its routing and its load are recorded as fields of the engine, and the record of its state as three flags."""
    life, phase = engine.life, engine.life.phase
    teardown = phase if isinstance(phase, engine_life.Teardown) else engine_life.Teardown()
    return {
        "id": engine.id,
        "gpus": engine.gpus,
        "slots": engine.slots,
        "budget": engine.budget,
        "state": engine.state,
        "incarnation": life.incarnation,
        "op": engine.op,
        "version": life.version,
        "route": life.routing.version,
        "routing_to": life.routing.ordered,
        "touched": life.routing.used,
        "released": isinstance(phase, engine_life.Pausing) and phase.released,
        "gone": teardown.exited,
        "told_lost": teardown.lost_sent,
        "held": engine.held,
        "since": engine.since,
        "not_before": engine.not_before,
        "in_flight": life.load.in_flight,
        "completed": life.load.completed,
        "failures": life.load.failures,
        "tokens": life.load.tokens,
        "fault": engine.fault,
        "attempt_until": life.attempt_until,
        "drained": engine.drained,
        "pids": life.pids,
        "pauses": engine.pauses,
        "wakes": engine.wakes,
        "restarts": engine.restarts,
        "note": engine.note,
        "failed_at": engine.failed_at,
        "asked": engine.by_operator,
        "cost": engine.cost,
        **({} if engine.failed_with is None else {"failed_with": engine.failed_with}),  # older recordings do not have it
    }


def _engine(has: dict[str, Any]) -> records.Engine:
    """Take the fields out of `has`; what is left over is no field of an engine. Raises KeyError and TypeError."""
    take = has.pop
    released, gone, told_lost = take("released"), take("gone"), take("told_lost")
    kind = engine_life.PHASES.get(has["state"])
    life = engine_life.EngineLife(
        incarnation=take("incarnation"),
        version=take("version"),
        routing=engine_life.Routing(take("route"), take("routing_to"), take("touched")),
        load=engine_life.Load(take("in_flight"), take("completed"), take("failures"), take("tokens")),
        phase=None
        if kind is None
        else engine_life.Pausing(released)
        if kind is engine_life.Pausing
        else engine_life.Teardown(gone, told_lost),
        attempt_until=take("attempt_until"),
        pids=take("pids"),
    )
    return records.Engine(life=life, by_operator=take("asked"), **has)


def _trainer_fields(trainer: records.Trainer) -> dict[str, Any]:
    """A trainer's teardown is recorded as the flag `gone`; `fence_note` was always empty."""
    return {
        "id": trainer.id,
        "world_size": trainer.world_size,
        "budget": trainer.budget,
        "steps_done": trainer.steps_done,
        "restored": trainer.restored,
        "state": trainer.state,
        "incarnation": trainer.incarnation,
        "op": trainer.op,
        "request": trainer.request,
        "grant": trainer.grant,
        "left": trainer.lease_ended_at,
        "publishing": trainer.publishing,
        "exits": trainer.exits,
        "first_exit": trainer.first_exit,
        "gone": trainer.teardown is not None and trainer.teardown.exited,
        "greeted": trainer.greeted,
        "fence_note": "",
        "not_before": trainer.not_before,
        "pids": trainer.pids,
        "restarts": trainer.restarts,
        "note": trainer.note,
        "failed_at": trainer.failed_at,
        "asked": trainer.by_operator,
        **{f"of_ranks_{name}": one for name in _NEWER[records.Trainer] if (one := getattr(trainer, name))},
    }


def _trainer(has: dict[str, Any]) -> records.Trainer:
    """Take the fields out of `has`; what is left over is no field of a trainer. Raises KeyError and TypeError."""
    take = has.pop
    take("fence_note")
    newer = {name: take(f"of_ranks_{name}", absent()) for name, absent in _NEWER[records.Trainer].items()}
    gone = take("gone")
    ending = has["state"] in (records.TrainerState.QUARANTINED, records.TrainerState.STOPPING)
    teardown = engine_life.Teardown(gone) if ending else None
    return records.Trainer(lease_ended_at=take("left"), by_operator=take("asked"), teardown=teardown, **newer, **has)
