"""Too few open files or processes are told before the start, by what the file asks for."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.config.machine import process_limits
from supervisor.config.schema.rules import Draft, DraftPipeline
from supervisor.config.schema.tables import EngineTable, TrainerTable
from trainers.protocol.ids import PipelineId

CHECKOUT = Path(__file__).resolve().parents[3]


def draft(pipelines: int, gpus: int = 1) -> Draft:
    engine = EngineTable(kind="embedded", model="/m", gpus=list(range(gpus)))
    trainer = TrainerTable(gpus=[0], steps=1, command=["x"])
    return Draft(None, tuple(DraftPipeline(f"pipeline[{n}]", PipelineId(f"p{n}"), engine, trainer) for n in range(pipelines)))


@pytest.mark.parametrize(("files", "tasks", "told"), [(64, 1000, "open files"), (4096, 22, "processes"), (4096, 1000, ""), (1024, 30, "")])
def test_what_is_too_little_is_told(files: int, tasks: int, told: str) -> None:
    found = [finding.problem for finding in process_limits.findings(draft(2), files, tasks)]
    assert len(found) == bool(told)
    assert all(told in problem for problem in found)


def test_a_large_box_needs_more_than_the_usual_limit() -> None:
    assert not list(process_limits.findings(draft(4, 4), 1024, None))
    (told,) = process_limits.findings(draft(16, 8), 1024, None)
    assert "open files" in told.problem


def test_the_tightest_cgroup_counts(tmp_path: Path) -> None:
    inner = tmp_path / "slice" / "unit"
    inner.mkdir(parents=True)
    for place, most, now in ((tmp_path / "slice", "30", "12"), (inner, "max", "12")):
        (place / "pids.max").write_text(most + "\n")
        (place / "pids.current").write_text(now + "\n")
    assert process_limits.tasks_left("0::/slice/unit\n", tmp_path) == 18
    assert process_limits.tasks_left("0::/elsewhere\n", tmp_path) is None
    assert process_limits.tasks_left("nonsense\n", tmp_path) is None


def test_check_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "supervisor", "check", str(CHECKOUT / "examples" / "quickstart.toml")],
        capture_output=True, text=True, check=False, cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'trainers' / 'client'}", "COLUMNS": "200"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "open files" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
