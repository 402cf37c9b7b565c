"""`supervise logs`: what is named and is not there is an error that says what there is."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from supervisor.attempt.directory import new_attempt
from supervisor.cli.main import main
from supervisor.config.schema.tables import Config
from supervisor.views.logs import since


@pytest.fixture(autouse=True)
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The latest run: quickstart's first attempt, with one pipeline on two GPUs."""
    monkeypatch.chdir(tmp_path)
    made = new_attempt(tmp_path / "runs", "quickstart")
    made.begin(Config(pipeline=[]), b"")
    made.close()
    pipeline = {"name": "p1", "engine": {"gpus": [0, 1], "tp": 1}, "trainer": {"gpus": [0]}}
    (made.path / "config.resolved.json").write_text(json.dumps({"pipeline": [pipeline]}))
    record = {
        "timestamp": "2026-01-02T03:04:05.678Z",
        "level": "error",
        "event": "trainer failed: why",
        "pipeline": "p1",
        "group": "trainer",
    }
    (made.path / "supervisor.jsonl").write_text(json.dumps(record) + "\n")
    (made.path / "logs" / "p1.model.log").write_text("no such recipe\n")
    return made.path


@pytest.mark.parametrize("words", [["logs"], ["logs", "quickstart"], ["logs", "quickstart", "p1"], ["logs", "p1"], ["logs", "p1/trainer"]])
def test_a_run_a_part_or_both(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "p1/trainer trainer failed: why" in out
    assert ("no such recipe" in out) == (words[-1] != "p1/trainer")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "There is no 'nosuch' in quickstart/attempt_1. It has p1, supervisor, prewarm; of p1: p1/engine/0 to p1/engine/1, "),
        (["quickstart", "p9"], "There is no 'p9' in quickstart/attempt_1."),
        (
            ["quickstart", "p1/engine/77"],
            "There is no p1/engine/77 in quickstart/attempt_1. p1 has p1/engine/0 to p1/engine/1, p1/trainer/0",
        ),
        (["p1/engine/77", "-f"], "There is no p1/engine/77"),
        (["nosuch", "p1"], "There is no run nosuch"),
        (["p1", "-n", "-1"], "--lines counts from 0."),
    ],
)
def test_what_is_not_there(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"supervise: {said}")
    assert told.err.count("\n") == 1


def test_nothing_yet_is_no_mistake_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "p1/engine/1"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "supervise: nothing is logged of p1/engine/1 yet, or nothing of what is asked for.\n")


def lines(attempt: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is shown of a log with a record a level, a minute apart."""
    began = datetime.now(UTC) - timedelta(minutes=4)
    with (attempt / "supervisor.jsonl").open("w") as file:
        for at, level in enumerate(("debug", "info", "warning", "error")):
            stamp = (began + timedelta(minutes=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            file.write(json.dumps({"timestamp": stamp, "level": level, "event": f"said at {level}", "pipeline": "p1", "lease": at}) + "\n")
    assert main(["logs", *words]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if "==>" not in line]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], ["no such recipe", "debug", "info", "warning", "error"]),
        (["--level", "warning"], ["warning", "error"]),
        (["--since", "90s"], ["error"]),
        (["--since", "150s"], ["warning", "error"]),
        (["--since", "2026-01-01"], ["debug", "info", "warning", "error"]),
        (["--grep", "lease=[12]"], ["info", "warning"]),
        (["--grep", "recipe"], ["no such recipe"]),
        (["--level", "info", "--since", "1h", "--grep", "said", "-n", "2"], ["warning", "error"]),
    ],
)
def test_only_what_is_asked_for(attempt: Path, words: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(attempt, *words, capsys=capsys)
    assert len(found) == len(shown), found
    assert [one for one, line in zip(shown, found, strict=True) if one not in line] == []


@pytest.mark.parametrize("words", [["--since", "yesterday"], ["--since", ""], ["--grep", "("], ["--level", "loud"]])
def test_a_filter_that_makes_no_sense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_hour_of_today_is_the_place_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert since("14:30", datetime(2026, 11, 27, 3, 0, tzinfo=UTC)) == "2026-11-27T05:30:00.000"
    finally:
        monkeypatch.undo()
        time.tzset()
