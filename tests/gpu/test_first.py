"""`first.py` runs where there is no card, too: nine lines, and each step that needs a card says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.first import STEPS

FIRST = Path(__file__).with_name("first.py")


@pytest.mark.slow
def test_every_step_says_something_and_nothing_fails_without_a_card(tmp_path: Path) -> None:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(FIRST), str(tmp_path)], env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "first.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(STEPS)
    assert [line["step"] for line in lines if line.get("said") == "no GPU"] == list(STEPS)
    said = {line["step"]: line for line in lines}
    assert said["shm"]["total_mib"] > 0
    assert said["prewarm"]["threads"] == 1
    assert said["copies"]["memcpy_gb_s"] > 0


def test_a_step_that_fails_or_hangs_is_told_and_the_next_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gpu import first

    assert "failed" in first.play("no such step", 20.0)
    hung = first.play("shm", 0.01)
    assert hung["failed"] == "not done within 0 s"
