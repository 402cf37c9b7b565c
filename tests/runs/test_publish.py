"""A real run in which weights are published in the middle of a rollout: what `[pipeline.gateway] on_publish` makes of it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.supervised_run import CHECKOUT, Run

FILE = """
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ task = "parity", seed = 1, context = 512 }} }}
gpus = [1]
slots = 16
context = 512
[pipeline.trainer]
gpus = [0]
command = ["{python}", "-P", "{script}", "{result}"]
[pipeline.gateway]
{gateway}
"""


@pytest.fixture
def started() -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.stop()


def ended(started: list[Run], tmp_path: Path, trainer: str, gateway: str = "") -> tuple[Run, Any]:
    """A run with a trainer of the harness, which ends well, and what that has written down."""
    result = tmp_path / "result.json"
    file = tmp_path / "run.toml"
    script = CHECKOUT / "tests" / "harness" / trainer
    file.write_text(FILE.format(python=sys.executable, script=script, result=result, gateway=gateway))
    run = Run(tmp_path, file)
    started.append(run)
    assert run.end(90.0) == 0, run.tail()
    return run, json.loads(result.read_text())


def published(started: list[Run], tmp_path: Path, gateway: str) -> list[dict[str, Any]]:
    """The disturbed samples, which must be what the same samples are in peace: the weights that were published are the same."""
    made: dict[str, list[dict[str, Any]]] = ended(started, tmp_path, "publishing_trainer.py", gateway)[1]
    assert [(one["ids"], one["logprobs"]) for one in made["disturbed"]] == [(one["ids"], one["logprobs"]) for one in made["calm"]]
    assert all(one["versions"] == [[2, 0, 300]] for one in made["calm"])
    return made["disturbed"]


def test_continue_makes_one_sample_with_several_versions(started: list[Run], tmp_path: Path) -> None:
    for sample in published(started, tmp_path, ""):
        assert [version for version, _, _ in sample["versions"]] == [0, 1, 2]


def test_restart_makes_each_sample_with_the_last_version(started: list[Run], tmp_path: Path) -> None:
    for sample in published(started, tmp_path, 'on_publish = "restart"'):
        assert sample["versions"] == [[2, 0, 300]]


def test_finish_makes_each_sample_with_the_version_it_began_with(started: list[Run], tmp_path: Path) -> None:
    for sample in published(started, tmp_path, 'on_publish = "finish"'):
        assert sample["versions"] == [[0, 0, 300]]


def test_a_lag_of_one_lets_one_version_pass_and_no_second(started: list[Run], tmp_path: Path) -> None:
    for sample in published(started, tmp_path, "max_version_lag = 1"):
        assert sample["versions"] == [[2, 0, 300]]


def test_what_no_engine_can_use_is_refused_and_nothing_dies(started: list[Run], tmp_path: Path) -> None:
    """The old version stays, the engines live on; and a part of the weights is completed, so that log-probs are the trainer's."""
    run, made = ended(started, tmp_path, "clumsy_trainer.py")
    assert made["codes"] == {
        "names": "does_not_fit", "padded": "does_not_fit", "quantised": "does_not_fit", "part": "incomplete", "nan": "not_finite",
        "infinite": "not_finite", "adapter": "unmerged_adapter", "unreadable": "bad_snapshot",
    }  # fmt: skip
    assert made["versions"] == [[0], [0], [1]]
    assert max(made["off"]) < 1e-4
    assert (run.summary["p1"]["restarts"], run.summary["p1"]["outcome"]) == (0, "done"), run.summary
    assert not [record for record in run.log() if record["event"] in ("engine is quarantined", "trainer is quarantined")]
    assert sum(record["event"] == "refused" and record["about"] == "publish" for record in run.log()) == len(made["codes"])
    assert run.left_behind() == []
