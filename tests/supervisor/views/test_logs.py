"""`logs`: many files, one stream."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.views.log_sources import select
from supervisor.views.logs import Merge, Tail, follow


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def record(attempt: Path, event: str, at: str = "03:04:05.678", **fields: object) -> None:
    line = {"timestamp": f"2026-01-02T{at}Z", "level": "info", "event": event, **fields}
    with (attempt / "supervisor.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def child(attempt: Path, name: str, text: str) -> None:
    with (attempt / "logs" / name).open("a") as file:
        file.write(text)


def merged(attempt: Path, target: str | None = None) -> Merge:
    return Merge(attempt, select(attempt, target), colour=False)


def test_lines_come_as_they_arrive_with_their_source(attempt: Path) -> None:
    merge = merged(attempt)
    child(attempt, "p1.engine.0.log", "loading\nhalf")
    assert list(merge.lines()) == ["p1/engine/0  loading"]
    record(attempt, "ready", pipeline="p1", engine=0)
    child(attempt, "p2.trainer.1.log", "step 1\n")
    assert list(merge.lines()) == ["p2/trainer/1  step 1", "supervisor    03:04:05.678 info    p1/engine/0 ready"]
    child(attempt, "p1.engine.0.log", " and whole\n")
    assert list(merge.lines()) == ["p1/engine/0   half and whole"]
    assert list(merge.lines()) == []
    merge.close()


def test_selection(attempt: Path) -> None:
    for name in (
        "p1.engine.0.log",
        "p1.engine.1.log",
        "p1.trainer.0.log",
        "p1.gateway.log",
        "p1.model.log",
        "prewarm.log",
        "p2.engine.0.log",
        "other.txt",
        "p1.engine.x.log",
    ):
        child(attempt, name, f"{name}\n")
    record(attempt, "box")
    record(attempt, "engine", pipeline="p1", engine=0)
    record(attempt, "trainer", pipeline="p1", group="trainer")
    record(attempt, "whole", pipeline="p1")
    record(attempt, "p2's", pipeline="p2")

    def words(target: str | None) -> list[str]:
        merge = merged(attempt, target)
        found = [line.split()[-1] for line in merge.lines()]
        merge.close()
        return sorted(found)

    assert words("p1/engine/0") == ["engine", "p1.engine.0.log", "whole"]
    assert words("p1/engine") == ["engine", "p1.engine.0.log", "p1.engine.1.log", "whole"]
    assert words("p1/trainer") == ["p1.trainer.0.log", "trainer", "whole"]
    assert words("p1/trainer/0") == ["p1.trainer.0.log", "trainer", "whole"]
    assert words("p1/gateway") == ["p1.gateway.log", "whole"]
    assert words("p1/model") == ["p1.model.log", "whole"]
    of_p1 = ["engine", "trainer", "whole", "p1.engine.0.log", "p1.engine.1.log", "p1.trainer.0.log", "p1.gateway.log", "p1.model.log"]
    assert words("p1") == sorted(of_p1)
    assert words("supervisor") == sorted(["box", "engine", "trainer", "whole", "p2's"])
    assert words("prewarm") == ["prewarm.log"]
    assert len(words(None)) == 5 + 7


def test_hostile_lines_stay_lines(attempt: Path) -> None:
    child(
        attempt,
        "p1.engine.0.log",
        "\x1b[2J\x1b]0;owned\x07[bold]red\x1b[0m\r\x00\udcff\n".encode("utf-8", "surrogateescape").decode("latin-1"),
    )
    (attempt / "supervisor.jsonl").write_bytes(b'{"event": "\\u001b[31mx\\ny"}\n\xff\xfe not json\n[1]\n\n')
    merge = merged(attempt)
    lines = list(merge.lines())
    merge.close()
    assert not any("\x1b" in line or "\n" in line or "\r" in line for line in lines)
    assert lines[1].endswith("x\\ny")
    assert len(lines) == 4


def test_rotation_and_truncation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_text("one\ntwo\nhal")
    assert tail.lines() == [b"one", b"two"]
    path.write_text("new\n")  # truncated, and shorter
    assert tail.lines() == [b"hal", b"new"]
    path.rename(tmp_path / "log.1")
    with (tmp_path / "log.1").open("a") as file:
        file.write("last of the old\n")
    path.write_text("first of the new\n")
    assert tail.lines() == [b"last of the old", b"first of the new"]
    path.unlink()
    assert tail.lines() == []
    path.write_text("again\n")
    assert tail.lines() == [b"again"]
    tail.close()


def test_unfinished_and_endless_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("prompt> ")
    tail = Tail(path)
    looks = 0
    while not (found := tail.lines()):
        looks += 1
        assert looks < 20
    assert found == [b"prompt> "]
    path.write_text("x" * 300_000)
    assert sum(map(len, tail.lines() + tail.finish())) >= 300_000 - len("prompt> ")
    tail.close()


def test_history(attempt: Path) -> None:
    child(attempt, "p1.engine.0.log", "".join(f"{n}\n" for n in range(30)))
    record(attempt, "older")
    merge = merged(attempt)
    assert merge.history(3) == [
        "==> p1/engine/0: 3 lines without times <==",
        *(f"p1/engine/0  {number}" for number in (27, 28, 29)),
        "==> supervisor: by time <==",
        "supervisor   03:04:05.678 info    older",
    ]
    merge.close()
    merge = merged(attempt)
    assert len(merge.history(None)) == 31 + 2
    merge.close()
    merge = merged(attempt)
    assert merge.history(0) == []
    assert list(merge.lines()) == []
    merge.close()


def test_what_has_times_is_one_stream_and_the_rest_are_blocks_in_natural_order(attempt: Path) -> None:
    record(attempt, "first", "03:04:05.100")
    record(attempt, "third", "03:04:05.300")
    for number in (10, 9):
        child(attempt, f"p1.engine.{number}.log", f"of {number}\n")
    child(attempt, "p10.trainer.0.log", "of p10\n")
    child(attempt, "p2.trainer.0.log", "of p2\n")
    told = {
        "timestamp": "2026-01-02T03:04:05.200001Z",
        "level": "error",
        "event": "second",
        "pipeline": "p2",
        "source": "gateway",
        "why": "x",
    }
    order = {"timestamp": "2026-01-02T03:04:05.300001Z", "event": "order", "pipeline": "p2", "source": "gateway", "engine": 3}
    child(attempt, "p2.gateway.log", json.dumps(told) + "\nTraceback\n  of second\n" + json.dumps(order) + "\n")
    merge = merged(attempt)
    lines = merge.history(None)
    merge.close()
    assert [line for line in lines if line.startswith("==>")] == [
        "==> p1/engine/9: 1 line without times <==",
        "==> p1/engine/10: 1 line without times <==",
        "==> p2/trainer/0: 1 line without times <==",
        "==> p10/trainer/0: 1 line without times <==",
        "==> supervisor, p2/gateway: by time <==",
    ]
    assert lines[-6:] == [
        "supervisor     03:04:05.100 info    first",
        "p2/gateway     03:04:05.200 error   second why=x",
        "p2/gateway     Traceback",
        "p2/gateway       of second",
        "supervisor     03:04:05.300 info    third",
        "p2/gateway     03:04:05.300 info    p2/engine/3 order",
    ]


def test_a_stream_of_several_days_says_the_day(attempt: Path) -> None:
    record(attempt, "today")
    with (attempt / "supervisor.jsonl").open("a") as file:
        file.write('{"timestamp": "2026-01-03T00:00:00.000Z", "level": "info", "event": "tomorrow"}\n')
    merge = merged(attempt)
    assert [line.split(maxsplit=1)[1] for line in merge.history(None)] == [
        "2026-01-02 03:04:05.678 info    today",
        "2026-01-03 00:00:00.000 info    tomorrow",
    ]
    merge.close()


def test_following_ends_with_the_run_and_reads_its_last_words(attempt: Path) -> None:
    said: list[str] = []
    steps: list[Callable[[], None]] = [
        lambda: child(attempt, "p1.trainer.0.log", "a\n"),
        lambda: child(attempt, "p1.trainer.0.log", "b\n"),
        lambda: child(attempt, "p1.trainer.0.log", "no newline at the end"),
    ]

    def wait() -> None:
        steps.pop(0)()

    follow(merged(attempt), said.append, wait, lambda: bool(steps))
    assert [line.split(maxsplit=1)[1] for line in said] == ["a", "b", "no newline at the end"]
