"""Run directories: numbered, locked, found again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.attempt.directory import RunDirectory, is_running, new_attempt, open_attempt
from supervisor.config.schema.tables import Config, HostTable
from supervisor.errors import SetUpError, UsageError
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId, log_name

CHECKOUT = Path(__file__).resolve().parents[3]
CONFIG = Config([], HostTable(virtual=4))


def begun(runs: Path, name: str = "q") -> RunDirectory:
    attempt = new_attempt(runs, name)
    attempt.begin(CONFIG, b"# mine\n")
    return attempt


def test_attempts_are_numbered_and_latest_follows(tmp_path: Path) -> None:
    first, second = begun(tmp_path), begun(tmp_path)
    assert [attempt.path.name for attempt in (first, second)] == ["attempt_1", "attempt_2"]
    assert os.readlink(tmp_path / "latest") == "q/attempt_2"
    assert first.run_id != second.run_id
    assert (first.path.stat().st_mode & 0o777) == 0o700
    assert str(first.shared_memory("/dev/shm")) == f"/dev/shm/trainshed-{first.run_id}"
    assert first.checkpoints("p1").is_dir()
    for attempt in (first, second):
        attempt.close()


def test_an_attempt_that_never_began_leaves_nothing_and_moves_nothing(tmp_path: Path) -> None:
    first = begun(tmp_path)
    new_attempt(tmp_path, "q").close()
    new_attempt(tmp_path, "other").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "q"]
    assert [path.name for path in (tmp_path / "q").iterdir()] == ["attempt_1"]
    assert os.readlink(tmp_path / "latest") == "q/attempt_1"
    first.close()
    again = open_attempt(first.path)
    again.close()
    assert (first.path / "config.toml").read_bytes() == b"# mine\n", "one that is resumed and refused stays as it was"


def test_there_is_room_for_the_last_words(tmp_path: Path) -> None:
    attempt = begun(tmp_path)
    (reserve,) = (path for path in attempt.path.iterdir() if path.stat().st_size == 64 << 10)
    assert reserve.stat().st_blocks * 512 >= 64 << 10
    attempt.release_reserve()
    attempt.release_reserve()
    assert not reserve.exists()
    attempt.close()


def test_a_full_disk_is_no_place_to_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    attempt = new_attempt(tmp_path, "q")
    with pytest.raises(SetUpError, match="cannot begin there: No space left on device"):
        attempt.begin(CONFIG, b"# mine\n")
    attempt.close()
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_has_one_supervisor(tmp_path: Path) -> None:
    attempt = begun(tmp_path)
    assert is_running(attempt.path)
    with pytest.raises(UsageError, match="another supervisor"):
        open_attempt(attempt.path)
    attempt.close()
    assert not is_running(attempt.path)
    again = open_attempt(attempt.path)
    assert again.resumed
    assert again.run_id == attempt.run_id
    again.close()


HOLDER = """\
import sys
from pathlib import Path
from supervisor.attempt.directory import new_attempt
new_attempt(Path(sys.argv[1]), 'q')
print('x', flush=True)
input()
"""


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", HOLDER, str(tmp_path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(CHECKOUT)})
    assert child.stdout is not None
    child.stdout.readline()
    assert is_running(tmp_path / "q" / "attempt_1")
    child.kill()
    child.wait(10)
    child.stdout.close()
    assert child.stdin is not None
    child.stdin.close()
    assert not is_running(tmp_path / "q" / "attempt_1")


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetUpError, match="no directory for a run"):
        new_attempt(tmp_path / "file", "q")
    with pytest.raises(UsageError, match="not the directory of a run"):
        open_attempt(tmp_path)


def test_a_damaged_run_id_is_refused(tmp_path: Path) -> None:
    attempt = begun(tmp_path)
    attempt.close()
    (attempt.path / "run_id").write_text("../../etc")
    with pytest.raises(UsageError, match="damaged"):
        open_attempt(attempt.path)


def test_a_latest_that_is_no_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    begun(tmp_path).close()
    assert (tmp_path / "latest").is_dir()


def test_names_of_logs() -> None:
    p1 = PipelineId("p1")
    names = [log_name(EngineId(p1, 0)), log_name(EngineId(p1, 0), 1), log_name(TrainerId(p1), 1), log_name(GatewayId(p1))]
    assert names == ["p1.engine.0.log", "p1.engine.0.1.log", "p1.trainer.1.log", "p1.gateway.log"]


def test_the_configuration_is_kept(tmp_path: Path) -> None:
    attempt = begun(tmp_path)
    assert (attempt.path / "config.toml").read_bytes() == b"# mine\n"
    assert json.loads((attempt.path / "config.resolved.json").read_text())["host"]["virtual"] == 4
    attempt.begin(Config([], HostTable(virtual=2)), b"")
    assert json.loads((attempt.path / "config.resolved.json").read_text())["host"]["virtual"] == 4, (
        "its own record was what it was read from"
    )
    attempt.close()
