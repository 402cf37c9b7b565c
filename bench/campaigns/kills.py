"""The quickstart's topology, five rollouts, with one `kill -9` (or SIGSTOP) in each case: it still ends 5 of 5, and learns the same.

bin/check --long kills
"""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.campaigns.harness.campaign import run
from supervisor.observe.status import PipelineView
from tests.harness.supervised_run import Run, configuration

PHASES: dict[str, Callable[[PipelineView], bool]] = {
    "rollout": lambda view: view.state == "rolling out" and view.engines_awake > 0 and 0 < view.samples_done < view.target,
    "training": lambda view: "train" in view.trainer.holds,
    "between": lambda view: view.step > 0 and view.state == "running",
}
CASES = [f"rank{rank}-{phase}" for rank in (0, 1) for phase in PHASES] + [
    "engine-rollout",
    "gateway-rollout",
    "supervisor-training",
    "stop-training",
]
_calm: dict[str, list[dict[str, object]]] = {}


def calm() -> dict[str, list[dict[str, object]]]:
    """What an undisturbed run learns."""
    if not _calm:
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            undisturbed = Run(Path(folder), configuration(Path(folder) / "calm.toml", steps=5))
            assert undisturbed.end() == 0, undisturbed.tail()
            _calm.update({name: undisturbed.metrics(name) for name in ("p1", "p2")})
    return _calm


def case(id: str) -> dict[str, object]:
    who, _, phase = id.partition("-")
    expected = calm()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        cwd = Path(folder)
        disturbed = Run(cwd, configuration(cwd / "kills.toml", steps=5, trainer="lease_limit_s = 5.0" if who == "stop" else ""))
        view = disturbed.when("p1", lambda view: view.step >= 1 and PHASES[phase](view), phase)
        os.kill(target(disturbed, view, who), signal.SIGSTOP if who == "stop" else signal.SIGKILL)
        if who == "supervisor":
            assert disturbed.end(5) == 128 + signal.SIGKILL
            assert [line for line in disturbed.left_behind() if "control.sock" not in line] == []
            disturbed = Run(cwd, cwd / "kills.toml", "--resume")
        assert disturbed.end(120) == 0, disturbed.tail()
        summary = disturbed.summary
        for name in ("p1", "p2"):
            assert summary[name]["steps"] == 5
            assert disturbed.metrics(name) == expected[name], f"{id}: {name} learned something else"
        if who != "supervisor":
            assert summary["p2"]["restarts"] == 0
            assert summary["p2"]["samples"] == 5 * 256
            assert summary["p2"]["weight_version"] == 5
        left = disturbed.left_behind()
        assert left == [], left
        return {"restarts": summary["p1"]["restarts"], "samples": summary["p1"]["samples"], "version": summary["p1"]["weight_version"]}


def target(disturbed: Run, view: PipelineView, who: str) -> int:
    if who == "engine":
        return max((engine for engine in view.engines if engine.state == "serving"), key=lambda engine: engine.in_flight).pids[0]
    if who == "gateway":
        assert view.gateway.pid is not None
        return view.gateway.pid
    if who == "supervisor":
        return disturbed.supervisor_pid()
    return view.trainer.pids[1 if who in ("rank1", "stop") else 0]


if __name__ == "__main__":
    results = run("kills", CASES, case)
    print(f"{len(results)} of {len(CASES)} ended 5 of 5 with the weights of an undisturbed run")
