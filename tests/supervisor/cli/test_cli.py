"""The command line, as processes where it matters."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from supervisor.attempt.directory import RunDirectory, new_attempt
from supervisor.attempt.summary import PipelineSummary, Summary, write
from supervisor.cli.main import COMMANDS, arranged, main
from supervisor.config.schema.tables import Config
from supervisor.errors import SetUpError, UsageError
from supervisor.runtime.startup import Options

CHECKOUT = Path(__file__).resolve().parents[3]
GOOD = """\
[host]
virtual = 2
[[pipeline]]
name = "p1"
engine = { model = { make = "trainers.grpo.tiny:make" }, gpus = [0, 1] }
trainer = { gpus = [0], entry = "trainers.grpo:main" }
"""


def supervise(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-P", "-m", "supervisor", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_arranged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert arranged(["a.toml"]) == ["run", "a.toml"]
    assert arranged(["--detach", "a.toml"]) == ["run", "--detach", "a.toml"]
    assert arranged(["run", "a.toml", "--resume"]) == ["run", "a.toml", "--resume"]
    assert arranged(["run", "--resume", "a.toml"]) == ["run", "--resume", "a.toml"]
    assert arranged(["run", "--resume", "runs/a/attempt_1"]) == ["run", "--resume-from", "runs/a/attempt_1"]
    assert arranged(["run", "--resume=a"]) == ["run", "--resume-from", "a"]
    assert arranged(["resume", "p1"]) == ["resume", "p1"]
    assert arranged(["--help"]) == ["--help"]
    with pytest.raises(UsageError, match="did you mean status"):
        arranged(["statsu"])


ACTING = ("stop", "restart", "drain", "pause", "resume", "reset", "run", "--kill", "--now", "--detach")


@pytest.mark.parametrize(
    "words",
    [
        ["top"],
        ["stpo"],
        ["rsetart"],
        ["drian"],
        ["puase"],
        ["rest"],
        ["rum"],
        ["stop", "--kil"],
        ["stop", "--no"],
        ["run", "a.toml", "--sett", "steps=2"],
    ],
)
def test_no_typing_error_is_answered_with_a_word_that_does_something(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err.replace(" ".join(words), "").replace(repr(words[0]), "")
    assert not [word for word in ACTING if f" {word}" in told.replace("?", " ")], told


RUNS = (["run", "x"], ["a.toml"], ["a.conf"], ["fifo"], ["--resume", "a.toml"], ["--detach", "a.toml"], ["gone.toml"])
"""Forms of `run`: each needs a guardian."""


@pytest.mark.parametrize(
    ("words", "guarded"),
    [
        *(([command.__name__], command.__name__ == "run") for command in COMMANDS),
        *((words, True) for words in RUNS),
        *((words, False) for words in ([], ["--help"], ["--version"], ["statsu"], ["folder"])),
    ],
)
def test_only_a_run_has_a_guardian_above_it(words: list[str], guarded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bin/supervise` knows no list of commands; what it takes for a run, the command line takes for one."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.toml", "a.conf"):
        (tmp_path / name).write_text(GOOD)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    script = (CHECKOUT / "bin" / "supervise").read_text().partition("guarded=false")
    decide = f"set -eu; venv=v; root=r; {''.join(script[1:])}".replace("exec ", "exec echo ")
    found = subprocess.run(["sh", "-c", decide, "supervise", *words], capture_output=True, text=True, timeout=10, check=True)
    assert ("guardian.py" in found.stdout) is guarded
    assert guarded or found.stdout.split()[4:] == (words or ["--help"])
    if guarded:
        assert arranged(words)[0] == "run"


@pytest.mark.parametrize(
    "words",
    [
        ["statsu"], ["run"], ["run", "a.toml", "b.toml"], ["check"], ["check", "--nope", "x"], ["status", "nowhere"], ["logs"], ["logs", "a", "b", "c"],
        ["stop"], ["stop", "p1", "--kill"], ["restart", "P1"], ["reset"], ["--nope"], ["run", "--resume", "nowhere"], ["logs", "-n", "x"],
    ],
)  # fmt: skip
def test_any_mistake_of_usage_is_one_line_and_exit_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("supervise: ")


def test_run_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to the runtime's door: what it is called with, and what is made of its answer."""
    calls: list[tuple[Config, RunDirectory, Options]] = []

    def run(config: Config, attempt: RunDirectory, options: Options) -> Summary:
        calls.append((config, attempt, options))
        attempt.begin(config, options.source)
        options.begun()
        summary = Summary(run=attempt.run_id, exit=5, wall_s=1.0, pipelines={})
        write(attempt.path, summary)
        return summary

    _stand_in(monkeypatch, run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(GOOD)
    attempt = tmp_path / "runs" / "a" / "attempt_1"
    assert main(["run", "a.toml", "--resume"]) == 2, "there is nothing to resume yet"
    assert main(["a.toml"]) == 5
    out = capsys.readouterr().out
    assert "run directory" in out
    assert "Stopped by the operator" in out
    assert (attempt / "config.toml").read_text() == GOOD
    assert main(["run", "a.toml", "--resume", "--json"]) == 5
    assert main(["run", "--resume", "a", "--detach"]) == 5
    assert [call[1].path for call in calls] == [attempt] * 3
    assert [call[1].resumed for call in calls] == [False, True, True]
    assert [call[2].console for call in calls] == ["readable", "json", "none"]
    assert [call[2].detach for call in calls] == [False, False, True]
    assert calls[0][0] == calls[2][0]
    assert main(["a.toml"]) == 5
    assert calls[3][1].path.name == "attempt_2"


def _stand_in(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    runtime = types.ModuleType("supervisor.runtime.run")
    runtime.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervisor.runtime.run", runtime)


def test_a_start_that_is_refused_leaves_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(config: Config, attempt: RunDirectory, options: Options) -> Summary:
        raise SetUpError("no port is left")

    _stand_in(monkeypatch, refused)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(GOOD)
    assert main(["a.toml"]) == 3
    assert list((tmp_path / "runs").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_run_that_does_not_fit_is_refused_with_a_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Config] = []

    def run(config: Config, attempt: RunDirectory, options: Options) -> Summary:
        ran.append(config)
        return Summary(run=attempt.run_id, exit=0, wall_s=1.0, pipelines={})

    _stand_in(monkeypatch, run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with open(tmp_path / "model" / "model.safetensors", "wb") as weights:
        weights.truncate(1 << 42)
    (tmp_path / "a.toml").write_text(GOOD.replace('{ make = "trainers.grpo.tiny:make" }', '"model"'))
    assert main(["a.toml"]) == 2
    said = capsys.readouterr().err
    assert "It does not fit: shared memory (/dev/shm) needs" in said
    assert "`run --anyway` starts it all the same" in said
    assert not (tmp_path / "runs").exists()
    assert not ran
    assert main(["run", "a.toml", "--anyway"]) == 0
    assert len(ran) == 1


def test_an_attempt_that_still_runs_is_told_of_and_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Config, attempt: RunDirectory, options: Options) -> Summary:
        attempt.begin(config, options.source)
        return Summary(run=attempt.run_id, exit=0, wall_s=1.0, pipelines={})

    _stand_in(monkeypatch, run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(GOOD)
    alive = new_attempt(tmp_path / "runs", "a")
    alive.begin(Config([]), b"#")
    assert main(["a.toml"]) == 0
    capsys.readouterr()
    assert main(["run", "a.toml", "--resume"]) == 0
    told = capsys.readouterr().err
    assert "resumes runs/a/attempt_2: from the beginning" in told
    assert main(["run", "--resume", "a/attempt_1"]) == 2
    assert "another supervisor runs there" in capsys.readouterr().err
    alive.close()


def test_check_as_a_process(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    good = supervise(tmp_path, "check", "a.toml")
    assert good.returncode == 0, good.stderr
    assert "nothing was started" in good.stdout
    assert json.loads(supervise(tmp_path, "check", "a.toml", "--json").stdout)["ports"] == [20000, 29999]
    (tmp_path / "b.toml").write_text(GOOD.replace("virtual = 2", 'virtual = "x"\nshm = "/nowhere"'))
    bad = supervise(tmp_path, "check", "b.toml")
    assert bad.returncode == 2
    assert [line.split(":")[1] for line in bad.stderr.splitlines()[:-1]] == ["2", "3"]
    assert bad.stderr.splitlines()[-1] == "2 mistakes; nothing was started."
    for_programs = supervise(tmp_path, "check", "b.toml", "--json")
    assert for_programs.returncode == 2
    assert for_programs.stderr == ""
    assert [mistake["key"] for mistake in json.loads(for_programs.stdout)["mistakes"]] == ["host.virtual", "host.shm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.toml", "b.toml"]


def _ended(tmp_path: Path) -> RunDirectory:
    attempt = new_attempt(tmp_path / "runs", "a")
    attempt.begin(Config([]), b"#")
    attempt.close()
    return attempt


def test_status_and_logs_of_a_run_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    attempt = _ended(tmp_path)
    assert main(["status"]) == 0
    told = capsys.readouterr().out
    assert "runs/a/attempt_1: the supervisor was killed or crashed at 20" in told
    assert "its processes were ended with it" in told
    assert "`bin/supervise run --resume runs/a/attempt_1`" in told
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resume"] == "bin/supervise run --resume runs/a/attempt_1"
    assert main(["stop"]) == 2
    assert "the supervisor was killed or crashed" in capsys.readouterr().err
    write(attempt.path, Summary(run="a-1", exit=0, wall_s=1.0, pipelines={"p1": PipelineSummary(steps=5)}))
    assert main(["stop"]) == 2
    assert "this run has ended already (exit 0)" in capsys.readouterr().err
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pipelines"]["p1"]["steps"] == 5
    (attempt.path / "logs" / "p1.trainer.0.log").write_text("hello\nworld\n")
    assert main(["logs", "p1/trainer", "-n", "1"]) == 0
    assert capsys.readouterr().out.split() == ["p1/trainer/0", "world"]
    assert main(["logs", "-f", "a", "p1"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    attempt = _ended(tmp_path)
    (attempt.path / "logs" / "p1.trainer.0.log").write_text("line\n" * 50_000)
    command = f"{sys.executable} -P -m supervisor logs | head -1; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["p1/trainer/0", "line", "0"]
    assert done.stderr == ""


def test_the_quick_commands_are_quick_and_light(tmp_path: Path) -> None:
    heavy = ("torch", "structlog", "aiohttp", "anyio", "uvloop")
    code = f"import sys, supervisor.cli.main as c; c.main(['logs']); print(*[m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "\n", "heavy modules are not imported for it"
    assert min(_cpu_seconds(tmp_path) for _ in range(3)) < 0.4


def _cpu_seconds(cwd: Path) -> float:
    before = os.times()
    supervise(cwd, "status")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_importing_the_main_module_does_nothing() -> None:
    code = "import supervisor.__main__"
    assert (
        subprocess.run(
            [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, timeout=60, check=False
        ).returncode
        == 0
    )
