"""Real runs in which what Trainshed starts makes the ranks by itself: torchrun, a shell, a script that starts another process."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.harness.supervised_run import CHECKOUT, Run

HEAD = """
[host]
virtual = 2
[health]
grace_s = 3
"""
PIPELINE = """
[[pipeline]]
name = "{name}"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ task = "parity", seed = 1 }} }}
gpus = [0, 1]
slots = 8
[pipeline.trainer]
gpus = [0, 1]
processes = "{processes}"
command = {command}
"""
SCRIPT = str(CHECKOUT / "tests" / "harness" / "launched_trainer.py")
TORCHRUN = [sys.executable, "-P", "-m", "torch.distributed.run"]
WRAPPER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


def run_of(tmp_path: Path, started: list[Run], commands: dict[str, list[str]], processes: str = "one") -> Run:
    file = tmp_path / "run.toml"
    pipelines = [PIPELINE.format(name=name, processes=processes, command=json.dumps(command)) for name, command in commands.items()]
    file.write_text(HEAD + "".join(pipelines))
    run = Run(tmp_path, file)
    started.append(run)
    return run


def written(result: Path, ranks: int) -> list[dict[str, Any]]:
    return [json.loads(result.with_suffix(f".{rank}").read_text()) for rank in range(ranks)]


def test_launchers_make_ranks_that_see_every_gpu(started: list[Run], tmp_path: Path) -> None:
    """A shell, in it a script, in it torchrun without any flag; and a single process with two GPUs."""
    nested = ["sh", "-c", 'exec "$@" | cat', "sh", sys.executable, "-c", WRAPPER, *TORCHRUN, SCRIPT, str(tmp_path / "many")]
    run = run_of(tmp_path, started, {"many": nested, "single": [sys.executable, "-P", SCRIPT, str(tmp_path / "single")]})
    assert run.end(120.0) == 0, run.tail()
    many, (single,) = written(tmp_path / "many", 2), written(tmp_path / "single", 1)
    for rank, found in enumerate(many):
        who = found["who"]
        assert (who["RANK"], who["LOCAL_RANK"], who["LOCAL_WORLD_SIZE"], who["WORLD_SIZE"]) == (str(rank), str(rank), "2", "2")
        assert found["gpus"] == [f"virtual:{rank}"], "the device that LOCAL_RANK names"
        assert found["ids"] == many[0]["ids"]
        assert "has been here already" in found["again"]
    assert 20000 <= int(many[0]["who"]["MASTER_PORT"]) < 30000, "from the window of ports, not torchrun's usual one"
    assert (single["world_size"], single["gpus"]) == (1, ["virtual:0", "virtual:1"])
    assert not list(run.directory.glob("*.ranks.sock"))
    assert "TRAINSHED_TOKEN" not in (run.directory / "supervisor.jsonl").read_text()
    assert not run.left_behind()


def test_a_deaf_tree_of_ranks_is_ended_within_grace(started: list[Run], tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        started,
        {"many": ["sh", "-c", 'trap "" TERM; "$@" & wait; wait', "sh", *TORCHRUN, SCRIPT, str(tmp_path / "many"), "deaf"]},
    )
    run.wait_until(lambda: len(list(tmp_path.glob("many.*"))) == 2, "both ranks")
    begun = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    run.end(60.0)
    assert time.monotonic() - begun < 3.0 + 2.5, "grace_s = 3, and what the run itself needs to end"
    assert not run.left_behind()


def test_a_rank_that_dies_alone_ends_the_trainer_and_it_comes_back(started: list[Run], tmp_path: Path) -> None:
    """torchrun ends the other rank; the whole trainer is started again."""
    run = run_of(tmp_path, started, {"many": [*TORCHRUN, SCRIPT, str(tmp_path / "many"), "stay"]})
    run.wait_until(lambda: len(list(tmp_path.glob("many.*"))) == 2, "both ranks")
    for path in tmp_path.glob("many.*"):
        path.unlink()
    victim = next(pid for pid in os.listdir("/proc") if pid.isdigit() and _is_rank_1(pid, run.run_id))
    os.kill(int(victim), signal.SIGKILL)
    run.wait_until(lambda: len(list(tmp_path.glob("many.*"))) == 2, "both ranks of the next life")
    view = run.when("many", lambda view: view.restarts == 1, "one restart")
    assert view.restarts == 1


def _is_rank_1(pid: str, run_id: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"RANK=1" in environment and any(one.startswith(b"TRAINSHED_TAG=" + run_id.encode()) for one in environment)


def test_a_launcher_where_a_rank_was_expected_is_told_in_one_sentence(started: list[Run], tmp_path: Path) -> None:
    run = run_of(tmp_path, started, {"many": [sys.executable, "-c", WRAPPER, sys.executable, "-P", SCRIPT, "x"]}, "per-gpu")
    run.wait_until((run.directory / "logs" / "many.trainer.0.log").exists, "its log")
    log = run.directory / "logs" / "many.trainer.0.log"
    run.wait_until(lambda: "NotSupervised" in log.read_text(), "what is wrong")
    (said,) = {line for line in log.read_text().splitlines() if line.startswith("trainshed.NotSupervised")}
    assert "(TRAINSHED_FD) was closed on the way here" in said
    assert 'Write processes = "one" into [pipeline.trainer]' in said
