"""The example of a user's own script, run as it is: a process, the client, nothing else of ours."""

import os
import subprocess
import sys
from pathlib import Path

from tests.trainers.fake_supervisor import FakeSupervisor, environment
from tests.trainers.grpo.sampler import Sampler
from trainers.grpo import tiny

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "own_trainer.py"


def test_it_learns_and_resumes_in_at_most_40_lines(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
    tiny.make(tmp_path / "model")
    sampler = Sampler(tmp_path / "model")
    with sampler.gateway() as gateway:
        rewards = []
        for steps_done, steps in ((0, 3), (3, 5)):
            path = str(tmp_path / f"{steps_done - 1}.pt") if steps_done else None
            with FakeSupervisor(tmp_path, url=gateway.url, steps=steps, steps_done=steps_done, checkpoint_path=path) as supervisor:
                sampler.supervisor = supervisor
                supervisor.version = steps_done
                command = [sys.executable, "-P", os.fspath(SCRIPT)]
                subprocess.run(command, env=environment(supervisor, 0), pass_fds=[supervisor.descriptor()], timeout=60, check=True)
                rewards += [report.metrics["reward"] for report in supervisor.reports]
    assert len(rewards) == 5
    assert rewards[-1] > rewards[0] + 0.15, rewards
