"""`logs`: many files, one stream."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.errors import UsageError
from supervisor.views.follow import Merge, Selection, Tail, follow, parse_target


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def record(attempt: Path, event: str, **fields: object) -> None:
    line = {"timestamp": "2026-01-02T03:04:05.678Z", "level": "info", "event": event, **fields}
    with (attempt / "supervisor.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def child(attempt: Path, name: str, text: str) -> None:
    with (attempt / "logs" / name).open("a") as file:
        file.write(text)


def merged(attempt: Path, target: str | None = None) -> Merge:
    return Merge(attempt, parse_target(target), colour=False)


def test_lines_come_as_they_arrive_with_their_source(attempt: Path) -> None:
    merge = merged(attempt)
    child(attempt, "p1.engine.0.log", "loading\nhalf")
    assert list(merge.lines()) == ["p1/engine/0      loading"]
    record(attempt, "ready", pipeline="p1", engine=0)
    child(attempt, "p2.trainer.1.log", "step 1\n")
    assert list(merge.lines()) == ["supervisor       03:04:05.678 info    p1/engine/0 ready", "p2/trainer/1     step 1"]
    child(attempt, "p1.engine.0.log", " and whole\n")
    assert list(merge.lines()) == ["p1/engine/0      half and whole"]
    assert list(merge.lines()) == []
    merge.close()


def test_selection(attempt: Path) -> None:
    for name in (
        "p1.engine.0.log",
        "p1.engine.1.log",
        "p1.trainer.0.log",
        "p1.gateway.log",
        "p2.engine.0.log",
        "other.txt",
        "p1.engine.x.log",
    ):
        child(attempt, name, f"{name}\n")
    record(attempt, "box")
    record(attempt, "engine", pipeline="p1", engine=0)
    record(attempt, "trainer", pipeline="p1")
    record(attempt, "p2's", pipeline="p2")

    def words(target: str | None) -> list[str]:
        merge = merged(attempt, target)
        found = [line.split()[-1] for line in merge.lines()]
        merge.close()
        return sorted(found)

    assert words("p1/engine/0") == ["engine", "p1.engine.0.log"]
    assert words("p1/trainer") == ["p1.trainer.0.log", "trainer"]
    assert words("p1/gateway") == ["p1.gateway.log", "trainer"]
    assert words("p1") == sorted(["engine", "trainer", "p1.engine.0.log", "p1.engine.1.log", "p1.trainer.0.log", "p1.gateway.log"])
    assert words("supervisor") == sorted(["box", "engine", "trainer", "p2's"])
    assert len(words(None)) == 4 + 5
    assert parse_target("p1/trainer/1") == Selection(pipeline="p1", kind="trainer", rank=1)
    for bad in ("P1", "p1/motor", "p1/engine/", "../x", "p1\n"):
        with pytest.raises(UsageError):
            parse_target(bad)


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
    assert lines[0].endswith("x\\ny")
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
    os.utime(attempt / "supervisor.jsonl", (1, 1))
    merge = merged(attempt)
    assert [line.split()[-1] for line in merge.history(3)] == ["older", "27", "28", "29"]
    merge.close()
    merge = merged(attempt)
    assert len(merge.history(None)) == 31
    merge.close()
    merge = merged(attempt)
    assert merge.history(0) == []
    assert list(merge.lines()) == []
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
