"""TRL as its users run it, in an environment of their own (`bin/test --stacks`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.supervised_run import CHECKOUT, Run

FOLDER = CHECKOUT / "tests" / "stacks"
FILE = """
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ seed = 1 }} }}
gpus = [0, 1]
slots = 16
[pipeline.trainer]
gpus = {gpus}
steps = {steps}
processes = "{processes}"
options = {options}
command = {command}
"""


@pytest.fixture
def started() -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.stop()


def ran(started: list[Run], folder: Path, command: list[str], options: str = "{}", **more: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"gpus": [0], "steps": 3, "processes": "per-gpu", **more}
    (folder / "run.toml").write_text(FILE.format(command=json.dumps(command), options=options, **facts))
    run = Run(folder, folder / "run.toml")
    started.append(run)
    assert run.end(150.0) == 0, run.tail()
    assert not run.left_behind()
    return run


def rewards(run: Run) -> dict[int, float]:
    """The last word of each step."""
    return {int(line["step"]): float(line["reward"]) for line in run.log() if line["event"] == "step done" and "reward" in line}  # type: ignore[call-overload, arg-type]


def script() -> str:
    return str(FOLDER / "trl_script.py")


def test_a_user_writes_eight_lines_at_most() -> None:
    assert len([line for line in (FOLDER / "trl_script.py").read_text().splitlines() if line.endswith("#T")]) <= 8


def test_grpo_on_two_ranks_killed_inside_an_optimizer_step_resumes_to_equal_rewards(
    started: list[Run], tmp_path: Path, python: str
) -> None:
    whole = ran(started, tmp_path / "whole", [python, "-P", script()], gpus=[0, 1], steps=4)
    killed = ran(started, tmp_path / "killed", [python, "-P", script()], "{ dies_at = 2 }", gpus=[0, 1], steps=4)
    assert killed.summary["p1"]["restarts"] == 1
    assert list(rewards(whole)) == [0, 1, 2, 3]
    assert rewards(killed) == rewards(whole)


@pytest.mark.parametrize("options", ['{ kind = "rloo", dies_at = 1 }', "{ lora = true, dies_at = 1 }"])
def test_rloo_and_lora_resume_to_equal_rewards(started: list[Run], tmp_path: Path, python: str, options: str) -> None:
    killed = ran(started, tmp_path / "killed", [python, "-P", script()], options)
    whole = ran(started, tmp_path / "whole", [python, "-P", script()], options.replace(", dies_at = 1", ""))
    assert killed.summary["p1"]["restarts"] == 1
    assert list(rewards(whole)) == [0, 1, 2]
    assert rewards(killed) == rewards(whole)
    versions = [version for record in whole.log() if isinstance(version := record.get("version"), int)]
    assert max(versions) >= 2, "each step's weights are published"
