"""examples/sglang-cpu.toml from the first command to the last step: two pipelines take turns with real SGLang on one virtual GPU."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.harness.sglang.served import REAL
from tests.harness.supervised_run import Run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sglang-cpu.toml"
pytestmark = [
    pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)"),
    pytest.mark.timeout(900),
]


def configuration(folder: Path, text: str) -> Path:
    file = folder / "sglang-cpu.toml"
    file.write_text(text.replace("../.sglang-cpu/bin/python", f"{REAL}/bin/python"))
    return file


def left_in_shm() -> set[str]:
    """What SGLang keeps there."""
    return {entry.name for entry in Path("/dev/shm").iterdir() if entry.name.startswith(("sglang_", "sgl_shm_"))}


def test_a_killed_supervisor_leaves_nothing_of_sglang(tmp_path: Path) -> None:
    """Its guardian removes what SGLang had in /dev/shm, too: the names are random, and stand in a note of the supervisor's."""
    before = left_in_shm()
    first, one, _ = EXAMPLE.read_text().split("[[pipeline]]")
    run = Run(tmp_path, configuration(tmp_path, f"{first}[[pipeline]]{one}"))
    try:
        run.when("p1", lambda view: view.engines[0].state == "serving", "an engine that serves", 500)
        assert left_in_shm() - before, "there is nothing to be removed"
        os.kill(run.supervisor_pid(), signal.SIGKILL)
        assert run.end(60) == 128 + signal.SIGKILL
    finally:
        run.stop()
    assert [line for line in run.left_behind() if "control.sock" not in line] == []
    assert left_in_shm() <= before


def test_two_pipelines_learn_with_real_sglang_on_one_virtual_gpu(tmp_path: Path) -> None:
    before = left_in_shm()
    run = Run(tmp_path, configuration(tmp_path, EXAMPLE.read_text()))
    try:
        assert run.end(800) == 0, run.tail()
    finally:
        run.stop()
    log = run.log()
    for name, pipeline in run.summary.items():
        assert pipeline["steps"] == 3
        assert pipeline["samples"] == 3 * 256
        assert pipeline["weight_version"] == 3
        assert pipeline["restarts"] == 0
        assert pipeline["pauses"] >= 2, "each gives way to training at every step"
        assert pipeline["resumes"] >= 2
        assert pipeline["last_reward"] > pipeline["first_reward"] + 0.03, f"{name} has learned nothing"
        (unmeasured,) = [
            record for record in log if record.get("pipeline") == name and "unmeasured" in record["event"] and record["level"] == "warning"
        ]
        assert "no promise" in unmeasured["event"]
    assert [record for record in log if record["event"] == "weights verified"], "no checksum was taken"
    assert run.left_behind() == []
    assert left_in_shm() <= before
    key_files = list(run.directory.rglob("settings.yaml"))
    assert key_files == [], "keys live in shared memory, and go with it"
    assert json.loads((run.directory / "summary.json").read_text())["exit"] == 0
    shutil.rmtree(run.directory)
