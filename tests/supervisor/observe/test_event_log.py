"""Who a record is about is always said by the same fields, so that the log of a group tells everything about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.observe.event_log import EventLog
from supervisor.observe.logs import Logs
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from supervisor.views.log_sources import Selection
from tests.harness.scheduler_bench import Bench, Rule, spec
from trainers.protocol.ids import GatewayId, PipelineId, TrainerId

A = PipelineId("a")
TRAINER, GATEWAY = TrainerId(A), GatewayId(A)


class Told(Bench):
    """Two GPUs, one pipeline `a`; an event log observes every event from the first one on."""

    def __init__(self, path: Path, rule: Rule = lambda _: None) -> None:
        self._path = path
        self._event_log: EventLog | None = None
        super().__init__(2, spec("a", [0], [0, 1]), rule=rule)

    def feed(self, *events: ev.Event) -> None:
        if self._event_log is None:
            self._event_log = self._listen()
        super().feed(*events)

    def _listen(self) -> EventLog:
        event_log, decide = EventLog(Logs(self._path, run="r", console="none").log), self.scheduler.handle

        def handle(event: ev.Event, now: float) -> list[do.Action]:
            actions = decide(event, now)
            event_log.observe(event, actions, self.scheduler, now)
            return actions

        self.scheduler.handle = handle  # type: ignore[method-assign]
        return event_log

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def of(self, kind: str | None, rank: int | None = None) -> list[str]:
        """What `logs a/KIND/RANK` shows."""
        selection = Selection(pipeline="a", kind=kind, rank=rank)
        return [record["event"] for record in self.records if selection.takes_record(record)]


def failing(kind: type[do.Action], reason: str) -> Rule:
    return lambda action: ev.ActionFailed(id=action.id, reason=reason) if isinstance(action, kind) else None


def test_why_a_trainer_failed_is_in_its_log(tmp_path: Path) -> None:
    told = Told(tmp_path / "s.jsonl")
    for life in (1, 2, 3, 4):
        told.die(TRAINER, code=1, life=life)
        told.wait(9.0)
    its = told.of("trainer")
    assert its.count("trainer failed: rank 0 ended with exit code 1") == 4
    assert any(event.startswith("trainer retired after 3 restarts") for event in its)
    assert "trainer is retired" in its
    assert not [event for event in told.of("engine") if "trainer" in event]
    lives = [record["incarnation"] for record in told.records if record["event"].startswith("trainer failed")]
    assert lives == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [None, "trainer", "engine", "gateway", "model"])
def test_what_fails_for_a_whole_pipeline_is_in_the_log_of_each_part(tmp_path: Path, kind: str | None) -> None:
    told = Told(tmp_path / "s.jsonl", failing(do.PrepareModel, "see a.model.log"))
    assert "its model could not be made: see a.model.log" in told.of(kind)
    assert "action failed" in told.of(kind)


def test_an_action_that_fails_is_told_of_whom_it_was_for(tmp_path: Path) -> None:
    told = Told(tmp_path / "s.jsonl", failing(do.StartGroup, "no answer"))
    told.open("a")
    assert "action failed" in told.of("engine", 0)
    assert "action failed" not in told.of("trainer")
    assert {record["action"] for record in told.records if record["event"] == "action failed"} == {"StartGroup"}


def test_a_gateway_that_died_says_how_and_when_the_next_one_serves(tmp_path: Path) -> None:
    told = Told(tmp_path / "s.jsonl")
    told.feed(ev.MemberExited(group=GATEWAY, incarnation=told.record("a").gateway.incarnation, member=0, code=-9, note="killed"))
    assert told.of("gateway") == [
        "gateway is serving",
        "member exited",
        "gateway failed: ended with signal 9: killed",
        "gateway is serving",
    ]


def test_whoever_is_asked_something_by_the_operator(tmp_path: Path) -> None:
    told = Told(tmp_path / "s.jsonl")
    told.feed(ev.OperatorAsked(verb="pause", pipeline=A, rank=1))
    assert told.of("engine", 1) == ["operator: pause: cold: will not be started until `resume`"]
    assert told.of("engine", 0) == []


def test_a_gpu_and_nothing_else_has_a_field_of_its_own(tmp_path: Path) -> None:
    first: list[do.Action] = []

    def held(action: do.Action) -> ev.Event | None:
        if isinstance(action, do.Measure) and not first:
            first.append(action)
            return ev.GpuHeld(id=action.id, gpus=action.gpus[:1], note="a stranger")
        return None

    told = Told(tmp_path / "s.jsonl", held)
    assert [record.get("gpu") for record in told.records if record["event"] == "fenced: a stranger"] == [0]
    assert not [record for record in told.records if "about" in record]
