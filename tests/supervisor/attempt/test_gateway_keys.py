"""Keys of gateways: made once an attempt, kept where only their user reads them, printed for a shell."""

import os
import shlex
import stat
from pathlib import Path

import pytest

from supervisor.attempt.directory import RunDirectory, new_attempt
from supervisor.attempt.gateway_keys import FILE, GatewayAccess, access, keep
from supervisor.cli.main import main
from supervisor.errors import UsageError
from supervisor.views.exports import exports
from trainers.protocol.ids import PipelineId

P1, P2 = PipelineId("p1"), PipelineId("p2")
URLS = {P1: "http://127.0.0.1:1", P2: "http://127.0.0.1:2"}
NOBODY = 65534


@pytest.fixture
def attempt(tmp_path: Path) -> RunDirectory:
    return new_attempt(tmp_path / "runs", "a")


def test_a_key_for_each_pipeline_that_survives_a_resumption(attempt: RunDirectory) -> None:
    keys = keep(attempt.path, URLS, frozenset({P2}))
    assert set(keys) == {P1}
    assert len(keys[P1]) >= 43
    assert stat.S_IMODE((attempt.path / FILE).stat().st_mode) == 0o600
    assert keep(attempt.path, {**URLS, P1: "http://127.0.0.1:3"}, frozenset({P2})) == keys
    assert access(attempt.path, "p1") == GatewayAccess("http://127.0.0.1:3", keys[P1])
    assert keys[P1] not in repr(access(attempt.path, "p1"))
    assert access(attempt.path, "p2").key is None


@pytest.mark.parametrize("spoiled", ["{", '{"p1": 1}', ""])
def test_a_damaged_file_is_replaced(attempt: RunDirectory, spoiled: str) -> None:
    (attempt.path / FILE).write_text(spoiled)
    (attempt.path / FILE).chmod(0o600)
    with pytest.raises(UsageError, match="damaged"):
        access(attempt.path, "p1")
    assert keep(attempt.path, URLS, frozenset())[P1]


def test_a_file_that_others_could_read_or_put_there_is_not_believed(attempt: RunDirectory) -> None:
    file = attempt.path / FILE
    before = keep(attempt.path, URLS, frozenset())
    file.chmod(0o644)
    with pytest.raises(UsageError, match="others may read it"):
        access(attempt.path, "p1")
    assert keep(attempt.path, URLS, frozenset())[P1] != before[P1]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UsageError, match="damaged"):
        access(attempt.path, "p1")
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="damaged"):
        access(attempt.path, "p1")


def test_what_is_printed_sets_what_clients_read(
    attempt: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keep(attempt.path, URLS, frozenset({P2}))[P1]
    monkeypatch.chdir(attempt.path.parents[2])
    assert main(["env", "p1", "--run", "a"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(lines) == sorted(
        ["export", pair]
        for pair in (
            "TRAINSHED_URL=http://127.0.0.1:1", f"TRAINSHED_API_KEY={key}", "OPENAI_BASE_URL=http://127.0.0.1:1/v1", f"OPENAI_API_KEY={key}"
        )
    )  # fmt: skip
    assert not any("TRAINSHED_API_KEY" in line for line in exports(GatewayAccess("u", None)))
    assert main(["env", "p9", "--run", "a"]) == 2
    assert "there is no pipeline 'p9'" in capsys.readouterr().err
    attempt.begun = True
    attempt.close()
    assert main(["env", "p1", "--run", "a"]) == 2
    assert "this run does not go on" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_the_run_of_another_user_is_refused_in_words(attempt: RunDirectory) -> None:
    keep(attempt.path, URLS, frozenset())
    os.chown(attempt.path / FILE, NOBODY, -1)
    with pytest.raises(UsageError, match=r"it belongs to uid 65534\. Only the user who started the run may have its keys"):
        access(attempt.path, "p1")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_read_the_file(attempt: RunDirectory) -> None:
    keep(attempt.path, URLS, frozenset())
    folder = os.open(attempt.path, os.O_PATH)  # even one who has come past the folders above
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            os.open(FILE, os.O_RDONLY, dir_fd=folder)
        except PermissionError:
            os._exit(13)
        os._exit(0)
    os.close(folder)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 13
