"""`supervise logs`: what is named and is not there is an error that says what there is."""

import json
from pathlib import Path

import pytest

from supervisor.attempt.directory import new_attempt
from supervisor.cli.main import main
from supervisor.config.schema.tables import Config


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
    assert (told.out, told.err) == ("", "supervise: nothing is logged of p1/engine/1 yet.\n")
