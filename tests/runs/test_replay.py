"""A real run, its supervisor killed half-way and resumed: the scheduler decides it all again, and another scheduler is told from it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.harness.mutation import CHECKOUT, environment, plant
from tests.harness.scheduler_mutants import MUTANTS
from tests.harness.supervised_run import Run, configuration

CHANGED = "E589866 opened when all are routable"


def replayed(run: Run, checkout: Path = CHECKOUT) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-P", "-m", "supervisor", "replay", str(run.directory), "--json"]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def test_a_real_run_is_decided_again(tmp_path: Path) -> None:
    run = Run(tmp_path, configuration(tmp_path / "tiny.toml"))
    try:
        run.when("p1", lambda view: view.step == 1 and "train" in view.trainer.holds, "the second training")
        os.kill(run.supervisor_pid(), signal.SIGKILL)
        run.end(10)
        code, found = replayed(run)
        assert (code, found["lives"], found["difference"]) == (0, 1, None)
        again = Run(tmp_path, tmp_path / "tiny.toml", "--resume")
        try:
            assert again.end() == 0, again.tail()
        finally:
            again.stop()
    finally:
        run.stop()
    code, found = replayed(run)
    assert (code, found["lives"], found["gaps"], found["difference"]) == (0, 2, 0, None)
    assert int(str(found["events"])) > 200
    code, found = replayed(run, plant(MUTANTS[CHANGED], tmp_path))
    assert code == 1, "a scheduler that opens a rollout later has decided the same"
    assert found["difference"]
