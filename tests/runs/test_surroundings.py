"""The examples of what runs stand in: a batch script, as Slurm would run it, on programs that stand for Slurm's and NVIDIA's."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.supervised_run import CHECKOUT

SCRIPT = CHECKOUT / "examples" / "slurm.sh"
SUPERVISE = """#!/bin/sh
trap 'kill $!; exit 5' TERM
printf '%s\\n' "$@" > "$PWD/asked"
sleep 60 &
wait $!
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("resumes", [False, True])
def test_the_batch_script_stops_the_run_in_time_and_goes_on_later(tmp_path: Path, resumes: bool) -> None:
    program(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\necho GPU-a\necho GPU-b\n")
    program(tmp_path / "bin", "scontrol", '#!/bin/sh\necho "$@" > requeued\n')
    program(tmp_path / "trainshed" / "bin", "supervise", SUPERVISE)
    if resumes:
        (tmp_path / "runs" / "mine" / "attempt_1").mkdir(parents=True)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TRAINSHED": str(tmp_path / "trainshed"), "SLURM_JOB_ID": "7",
    }  # fmt: skip
    job = subprocess.Popen(["bash", str(SCRIPT), "mine.toml"], cwd=tmp_path, env=environment)
    until((tmp_path / "asked").exists)
    until(lambda: (tmp_path / "asked").read_text().endswith("--resume\n" if resumes else "]\n"))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:3] == ["run", "mine.toml", "--set"]
    key, _, value = asked[3].partition("=")
    assert (key, json.loads(value)) == ("host.gpus", ["GPU-a", "GPU-b"])
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 5
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
