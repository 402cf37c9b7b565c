"""Every example of the README is run, to its end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.supervised_run import CHECKOUT, Run

EXAMPLES = CHECKOUT / "examples"


def example(started: list[Run], cwd: Path, name: str) -> Run:
    started.append(Run(cwd, EXAMPLES / name))
    return started[-1]


def test_quickstart(started: list[Run], tmp_path: Path) -> None:
    run = example(started, tmp_path, "quickstart.toml")
    assert run.end(90) == 0, run.tail()
    for pipeline in run.summary.values():
        assert pipeline["steps"] == 5
        assert pipeline["samples"] == 5 * 256
        assert pipeline["weight_version"] == 5
        assert pipeline["restarts"] == 0
        assert pipeline["last_reward"] > pipeline["first_reward"] + 0.2
    assert run.left_behind() == []
    shown = run.output.read_text().splitlines()
    assert len(shown) <= 30, "the console says what a person acts on: starts, steps, ends"
    assert len([line for line in shown if " step done " in line]) == 2 * 5
    assert len([record for record in run.log() if str(record["event"]).startswith("engine is ")]) > 30, "the file has every state"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.txt", "runs"], "something was written elsewhere"


def test_own_trainer(started: list[Run], tmp_path: Path) -> None:
    run = example(started, tmp_path, "own_trainer.toml")
    assert run.end() == 0, run.tail()
    assert run.summary["mine"]["steps"] == 4
    assert run.summary["mine"]["last_reward"] > run.summary["mine"]["first_reward"] + 0.2
    assert run.left_behind() == []


def test_own_trainer_on_two_gpus(started: list[Run], tmp_path: Path) -> None:
    """Two ranks that share the work; only the first saves, and a checkpoint is whole."""
    file = tmp_path / "two.toml"
    text = (EXAMPLES / "own_trainer.toml").read_text().replace("gpus = [0]  ", f'cwd = "{EXAMPLES}"\ngpus = [0, 1]  ')
    file.write_text(text.replace("steps = 4", "steps = 2"))
    started.append(Run(tmp_path, file))
    assert started[0].end() == 0, started[0].tail()
    assert started[0].summary["mine"]["steps"] == 2
    assert len(list((started[0].directory / "logs").glob("mine.trainer.*.log"))) == 2
    assert started[0].left_behind() == []


def test_http_only(started: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the Python that the caller's shell finds, which has nothing but its standard library."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    run = example(started, tmp_path, "http_only.toml")
    assert run.end() == 0, run.tail()
    assert 0 < run.summary["ask"]["samples"] <= 32, "it may end before its gateway has told of the last ones"
    assert "32 answers" in (run.directory / "logs" / "ask.trainer.0.log").read_text()
    assert json.loads((run.directory / "config.resolved.json").read_text())["pipeline"][0]["trainer"]["command"][0] == str(python)
    assert run.left_behind() == []


def test_status_and_logs_from_another_terminal(started: list[Run], tmp_path: Path) -> None:
    run = example(started, tmp_path, "quickstart.toml")
    run.when("p1", lambda view: view.state == "rolling out", "a rollout")

    def supervise(*arguments: str) -> str:
        command = [str(CHECKOUT / "bin" / "supervise"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30).stdout

    status = json.loads(supervise("status", "--json"))
    assert {pipeline["name"] for pipeline in status["pipelines"]} == {"p1", "p2"}
    assert all(pipeline["gateway"]["pid"] for pipeline in status["pipelines"])
    assert "p1" in supervise("status")
    assert "lease" in supervise("logs", "p1")
    supervise("stop")
    assert run.end(30) == 5
    assert run.left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_leaves_nothing(started: list[Run], tmp_path: Path, number: signal.Signals) -> None:
    run = example(started, tmp_path, "quickstart.toml")
    run.when("p2", lambda view: view.engines_awake > 0, "an awake engine")
    run.process.send_signal(number)
    assert run.end(30) == 5
    assert run.left_behind() == []
