"""Children that misbehave: the rest of the box goes on as if nothing had happened."""

import gzip
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.supervised_run import SEES_OURS, Run, configuration, processes_of

GARBAGE = """
import os, socket, time
from trainers.grpo import main as real_main

def main():
    if os.environ["TRAINSHED_TAG"].endswith(":1") and os.environ["RANK"] == "0":
        os.write(int(os.environ["TRAINSHED_FD"]), {bytes})
        time.sleep(60)
    real_main()
"""
FRAMES = {
    "no frame": b"\xff" * 64,
    "no JSON": b"\x00\x00\x00\x04oops",
    "not UTF-8": b'\x00\x00\x00\x12{"type":"hello\xff\xff"}',
    "an unknown message": b'\x00\x00\x00\x10{"type":"pwned"}',
    "a number beyond all bounds": b'\x00\x00\x00\x34{"type":"hello","rank":' + b"9" * 28 + b"}",
}


def others_are_unharmed(run: Run) -> None:
    assert run.summary["p2"] | {"waited_s": 0, "pauses": 0, "resumes": 0} == {
        "steps": 1, "samples": 256, "first_reward": run.summary["p2"]["first_reward"], "last_reward": run.summary["p2"]["last_reward"],
        "weight_version": 1, "restarts": 0, "waited_s": 0, "pauses": 0, "resumes": 0, "of": 1, "outcome": "done", "why": "", "log": "",
    }  # fmt: skip
    assert run.left_behind() == []


@pytest.mark.parametrize("what", FRAMES)
def test_a_trainer_that_says_nonsense(start: Callable[[Path], Run], tmp_path: Path, what: str) -> None:
    (tmp_path / "garbage.py").write_text(GARBAGE.format(bytes=FRAMES[what]))
    run = start(configuration(tmp_path / "tiny.toml", entry="garbage:main", steps=1, trainer=SEES_OURS))
    assert run.end() == 0, run.tail()
    assert run.summary["p1"]["restarts"] == 1
    assert run.summary["p1"]["steps"] == 1
    others_are_unharmed(run)


def test_a_trainer_that_always_fails_is_retired(start: Callable[[Path], Run], tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text('def main():\n    raise SystemExit("CUDA error: out of memory")\n')
    run = start(configuration(tmp_path / "tiny.toml", entry="fails:main", steps=1, health="restarts = 1"))
    assert run.end() == 4, run.tail()
    assert run.summary["p1"]["restarts"] == 1
    crashes = [record for record in run.log() if record["event"] == "member ended"]
    assert {record["crash"] for record in crashes if record["code"] == 1} == {"out of memory"}
    assert "CUDA error: out of memory" in str(crashes[0]["last_lines"])
    others_are_unharmed(run)


def test_a_script_that_raises_the_same_error_twice_is_not_tried_a_third_time(start: Callable[[Path], Run], tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text('def main():\n    return 1 + "one"\n')
    run = start(configuration(tmp_path / "tiny.toml", entry="wrong:main", steps=1))
    assert run.end() == 4, run.tail()
    assert run.summary["p1"]["restarts"] == 1
    assert run.summary["p1"]["log"] == "logs/p1.trainer.0.log" or run.summary["p1"]["log"] == "logs/p1.trainer.1.log"
    why = str(run.summary["p1"]["why"])
    assert "two lives that ended alike, after 0 steps (its script would fail again)" in why
    assert "TypeError: unsupported operand" in why
    others_are_unharmed(run)


def test_the_operator_s_command_is_told_of_failures_recoveries_and_the_end(start: Callable[[Path], Run], tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(ONCE)
    file = configuration(tmp_path / "tiny.toml", entry="once:main", steps=1, trainer=SEES_OURS)
    told = f'[notify]\ncommand = ["sh", "-c", "cat >> {tmp_path}/told; echo $TRAINSHED_EVENT; exit 3"]\n'
    file.write_text(told + file.read_text())
    run = start(file)
    assert run.end() == 0, run.tail()
    notices = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [(notice["event"], notice["pipeline"]) for notice in notices] == [("failure", "p1"), ("recovery", "p1"), ("end", "")]
    assert "p1/trainer: trainer failed: rank " in notices[0]["text"]
    assert "once is enough" in notices[0]["text"]
    assert (notices[2]["exit"], notices[2]["directory"]) == (0, str(run.directory))
    assert (run.directory / "logs" / "notify.log").read_text() == "failure\nrecovery\nend\n"
    assert len([record for record in run.log() if record["event"] == "[notify] command failed"]) == 3, "and it can hurt nobody"
    assert run.left_behind() == []


ONCE = """
import os
from trainers.grpo import main as real_main

def main():
    if os.environ["TRAINSHED_TAG"].endswith(":1"):
        raise ValueError("once is enough")
    real_main()
"""


def test_a_trainer_that_dies_with_its_key_in_its_last_line(start: Callable[[Path], Run], tmp_path: Path) -> None:
    """Its own log has it; nothing that is told of it has."""
    (tmp_path / "tells.py").write_text('import os\n\n\ndef main():\n    raise SystemExit("refused: " + os.environ["OPENAI_API_KEY"])\n')
    run = start(configuration(tmp_path / "tiny.toml", entry="tells:main", steps=1, health="restarts = 1"))
    assert run.end() == 4, run.tail()
    key = json.loads((run.directory / "gateways.json").read_text())["p1"]["key"]
    has = {path.name for path in run.directory.rglob("*") if path.is_file() and key.encode() in path.read_bytes()}
    assert has == {"gateways.json", "p1.trainer.0.log", "p1.trainer.1.log"}
    assert key not in run.output.read_text()
    assert "refused: ***" in run.output.read_text()


def test_a_model_that_cannot_be_made(start: Callable[[Path], Run], tmp_path: Path) -> None:
    file = configuration(tmp_path / "tiny.toml", steps=1)
    (tmp_path / "broken.py").write_text("def make(folder, **options):\n    raise RuntimeError('no such corpus')\n")
    file.write_text(file.read_text().replace("trainers.grpo.tiny:make", "broken:make", 1))
    run = start(file)
    assert run.end() == 4, run.tail()
    others_are_unharmed(run)


LARGE_LOG = "import os\n\ndef make(folder, **options):\n    os.ftruncate(1, 60 << 30)\n    os._exit(1)\n"


def test_a_model_recipe_with_a_log_larger_than_memory(start: Callable[[Path], Run], tmp_path: Path) -> None:
    file = configuration(tmp_path / "tiny.toml", steps=1)
    (tmp_path / "broken.py").write_text(LARGE_LOG)
    file.write_text(file.read_text().replace("trainers.grpo.tiny:make", "broken:make", 1))
    run = start(file)
    assert run.end() == 4, run.tail()
    others_are_unharmed(run)


REPLACED_LOG = """
import os
from trainers.grpo import main as real_main

def main():
    if os.environ["TRAINSHED_TAG"].endswith(":1") and os.environ["RANK"] == "0":
        log = os.readlink("/proc/self/fd/1")
        os.unlink(log)
        {put}
        raise SystemExit(1)
    real_main()
"""


@pytest.mark.parametrize("put", ["os.mkfifo(log)", "os.symlink('/dev/tty', log)"])
def test_a_trainer_that_replaces_its_log(start: Callable[[Path], Run], tmp_path: Path, put: str) -> None:
    (tmp_path / "replaces.py").write_text(REPLACED_LOG.format(put=put))
    run = start(configuration(tmp_path / "tiny.toml", entry="replaces:main", steps=1, trainer=SEES_OURS))
    assert run.end() == 0, run.tail()
    assert run.summary["p1"]["restarts"] == 1
    assert (run.directory / "logs" / "p1.trainer.0.log").is_file()
    others_are_unharmed(run)


BETRAYS = """
import os, sys

def main():
    print("Traceback of a client:")
    sys.exit(f"RuntimeError: 401 for {os.environ['WANDB_API_KEY']} and {os.environ['SERVICE_TOKEN']}")
"""


def test_a_trainer_that_dies_saying_its_keys(start: Callable[[Path], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in its own log, and in the configuration where they come from there; nowhere else."""
    ours, files = "wandb-0123456789abcdef", "service-fedcba9876543210"
    monkeypatch.setenv("WANDB_API_KEY", ours)
    (tmp_path / "betrays.py").write_text(BETRAYS)
    trainer = f'env = {{ SERVICE_TOKEN = "{files}" }}'
    run = start(configuration(tmp_path / "tiny.toml", entry="betrays:main", steps=1, health="restarts = 1", trainer=trainer))
    assert run.end() == 4, run.tail()
    texts = {path.relative_to(run.directory): path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    texts[Path("events")] = b"".join(gzip.decompress(text) for path, text in texts.items() if path.suffix == ".gz")
    texts[Path("console")] = run.output.read_bytes()
    for secret in (ours, files):
        assert secret.encode() in texts[Path("logs/p1.trainer.0.log")]
        told = {str(path) for path, text in texts.items() if secret.encode() in text}
        assert told <= {"logs/p1.trainer.0.log", "logs/p1.trainer.1.log", "config.toml", "config.resolved.json"}
    assert "401 for *** and ***" in run.tail(), "what is left of the line is shown"
    others_are_unharmed(run)


def test_kill_of_the_prewarmed_pool(start: Callable[[Path], Run], tmp_path: Path) -> None:
    run = start(configuration(tmp_path / "tiny.toml", steps=1))
    run.when("p1", lambda view: view.state == "rolling out" and view.engines_awake > 0, "a rollout")
    found = [pid for pid, _ in processes_of(run.run_id) if Path(f"/proc/{pid}/comm").read_text() == "prewarm\n"]
    servers = [pid for pid in found if _parent(pid) == run.supervisor_pid()]
    assert len(servers) == 1
    os.kill(servers[0], signal.SIGKILL)
    assert run.end() == 0, run.tail()
    assert run.summary["p1"]["restarts"] == 0
    others_are_unharmed(run)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_third_ctrl_c_kills(start: Callable[[Path], Run], tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(DEAF)
    run = start(configuration(tmp_path / "tiny.toml", entry="deaf:main", health="grace_s = 60.0"))
    run.when("p1", lambda view: view.trainer.state == "running" and (tmp_path / "deaf").exists(), "the deaf trainer")
    began = time.monotonic()
    for _ in range(3):
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # three of the same at once would be one signal
    assert run.end(20) == 5
    assert time.monotonic() - began < 15
    assert run.left_behind() == []


DEAF = """
import pathlib, signal, time

def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("deaf").touch()
    while True:
        time.sleep(1)
"""
