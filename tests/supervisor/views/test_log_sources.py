"""Which parts a run has, and what an operator may call them."""

import json
from pathlib import Path

import pytest

from supervisor.errors import UsageError
from supervisor.views.log_sources import Selection, Source, parts_of, select, source_of
from trainers.protocol.ids import (
    EngineId,
    GatewayId,
    GroupId,
    LogName,
    PipelineId,
    TrainerId,
    log_name,
    model_log_name,
    parse,
    parse_log_name,
)


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    attempt = tmp_path / "quickstart" / "attempt_3"
    (attempt / "logs").mkdir(parents=True)
    pipelines = [
        {"name": name, "engine": {"gpus": [0, 1, 2, 3], "tp": tp}, "trainer": {"gpus": [0, 1]}}
        for name, tp in (("p10", 2), ("p2", 1), ("supervisor-s", 4))
    ]
    (attempt / "config.resolved.json").write_text(json.dumps({"pipeline": pipelines}))
    return attempt


def test_what_may_be_named(attempt: Path) -> None:
    assert select(attempt, None) == Selection()
    assert select(attempt, "supervisor") == Selection(own="supervisor")
    assert select(attempt, "prewarm") == Selection(own="prewarm")
    assert select(attempt, "p2") == Selection(pipeline="p2")
    assert select(attempt, "p2/engine/3") == Selection(pipeline="p2", kind="engine", rank=3)
    assert select(attempt, "p2/trainer/1") == Selection(pipeline="p2", kind="trainer", rank=1)
    assert select(attempt, "p2/model") == Selection(pipeline="p2", kind="model")


@pytest.mark.parametrize("bad", ["p9", "P1", "p2/motor", "p2/engine/", "../x", "p2\n", "", "nosuch"])
def test_what_is_not_there_is_told_with_what_is(attempt: Path, bad: str) -> None:
    with pytest.raises(UsageError) as raised:
        select(attempt, bad)
    assert str(raised.value) == (
        f"There is no {bad!r} in quickstart/attempt_3. It has p2, p10, supervisor-s, supervisor, prewarm; "
        "of p2: p2/engine/0 to p2/engine/3, p2/trainer/0 to p2/trainer/1, p2/gateway, p2/model."
    )


def test_a_rank_that_is_not_there(attempt: Path) -> None:
    with pytest.raises(UsageError, match=r"^There is no p10/engine/2 in quickstart/attempt_3. p10 has p10/engine/0 to p10/engine/1, "):
        select(attempt, "p10/engine/2")
    with pytest.raises(UsageError, match="p2/trainer/77"):
        select(attempt, "p2/trainer/77")


def test_a_run_whose_configuration_cannot_be_read_has_what_its_files_say(attempt: Path) -> None:
    (attempt / "config.resolved.json").write_text('{"pipeline": [{"name": "p1", "engine": {"gpus": [0], "tp": 0}}]}')
    for name in ("old.engine.2.log", "old.gateway.log", "x.txt"):
        (attempt / "logs" / name).touch()
    assert list(parts_of(attempt)) == ["old"]
    assert select(attempt, "old/engine/2").rank == 2
    with pytest.raises(UsageError):
        select(attempt, "old/engine/3")


def test_files_and_their_sources() -> None:
    assert source_of("p1.engine.0.1.log") == Source("engine", "p1", 0, 1)
    assert [str(source_of(name)) for name in ("p1.engine.0.1.log", "p1.model.log", "prewarm.log")] == [
        "p1/engine/0/1",
        "p1/model",
        "prewarm",
    ]
    for other in ("other.txt", "p1.engine.x.log", "P.gateway.log", "p1.motor.log", ".log"):
        assert source_of(other) is None


@pytest.mark.parametrize(
    ("group", "member", "file"),
    [
        (EngineId(PipelineId("p-1"), 3), None, "p-1.engine.3.log"),
        (EngineId(PipelineId("p1"), 0), 1, "p1.engine.0.1.log"),
        (TrainerId(PipelineId("p1")), 2, "p1.trainer.2.log"),
        (GatewayId(PipelineId("p1")), None, "p1.gateway.log"),
    ],
)
def test_log_names_are_read_as_they_are_written(group: GroupId, member: int | None, file: str) -> None:
    assert log_name(group, member) == file
    read = parse_log_name(file)
    assert read is not None
    assert read.pipeline == group.pipeline
    assert parse(str(group)) == group
    assert parse_log_name(model_log_name(group.pipeline)) == LogName(group.pipeline, "model")
