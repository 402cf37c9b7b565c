"""The scripts in bin/ without a network: the cost of the check, repair, and one clear line for each error."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from supervisor.cli.main import COMMANDS

CHECKOUT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
# a Python that only knows what the set-up asks of it
case "$*" in
*version_info*) exit {version} ;;
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0 ;;
*metadata*) exit 1 ;;
*pip*) echo "$*" >>{calls}; {pip} ;;
*) echo "ran: PYTHONPATH=$PYTHONPATH $*" ;;
esac
"""


class Checkout:
    """A copy of the scripts, and a Python of our making on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "a checkout", folder / "calls"
        self.programs = folder / "programs"
        self.programs.mkdir()
        shutil.copytree(CHECKOUT / "bin", self.folder / "bin")
        for name in ("constraints.txt", "requirements.txt", "requirements-test.txt"):
            shutil.copy(CHECKOUT / name, self.folder / name)
        tools = "sh cat cmp cp df awk dirname readlink find flock grep mkdir mv rm sed sleep tail touch env"
        for tool in tools.split():
            if where := shutil.which(tool):
                (self.programs / tool).symlink_to(where)
        self.python()

    def python(self, *, pip: str = "exit 0", version: int = 0) -> None:
        path = self.programs / "python3"
        path.write_text(STUB.format(version=version, pip=pip, calls=self.calls))
        path.chmod(0o755)

    def start(self, *arguments: str, script: str = "supervise") -> subprocess.Popen[str]:
        env = {"PATH": str(self.programs), "TRAINSHED_TORCH": "cpu"}
        line = [str(self.folder / "bin" / script), *arguments]
        return subprocess.Popen(
            line, cwd=self.folder.parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, *arguments: str, script: str = "supervise") -> tuple[int, str, str]:
        process = self.start(*arguments, script=script)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err

    def pip_calls(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_start_sets_up_and_the_next_ones_only_look(checkout: Checkout) -> None:
    code, out, err = checkout.run("check", "a b.toml")
    assert code == 0
    assert out == f"ran: PYTHONPATH={checkout.folder} -P -m supervisor check a b.toml\n"
    assert "first start" in err
    assert [call.partition("constraints.txt ")[2] for call in checkout.pip_calls()] == [
        "torch==2.13.0+cpu",
        f"-r {checkout.folder}/requirements.txt",
    ]
    times = []
    for _ in range(7):
        began = time.perf_counter()
        assert checkout.run("status") == (0, f"ran: PYTHONPATH={checkout.folder} -P -m supervisor status\n", "")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05
    assert checkout.pip_calls() == []


@pytest.mark.parametrize("arguments", [("run", "x.toml"), ("x.toml", "--detach"), ("run", "--resume")])
def test_runs_go_below_the_guardian(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    _, out, _ = checkout.run(*arguments)
    guardian = checkout.folder / "supervisor" / "host" / "processes" / "guardian.py"
    assert out == f"ran: PYTHONPATH={checkout.folder} -I -S -E {guardian} {' '.join(arguments)}\n"


@pytest.mark.parametrize("word", sorted({command.__name__ for command in COMMANDS} - {"run"}))
def test_every_other_command_goes_straight(checkout: Checkout, word: str) -> None:
    assert checkout.run(word)[:2] == (0, f"ran: PYTHONPATH={checkout.folder} -P -m supervisor {word}\n")


def test_it_works_through_a_link_from_elsewhere(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(checkout.folder / "bin" / "supervise")
    done = subprocess.run(
        [tmp_path / "link", "--version"], env={"PATH": str(checkout.programs)}, cwd="/", capture_output=True, text=True, check=True
    )
    assert f"PYTHONPATH={checkout.folder} -P -m supervisor --version" in done.stdout


def test_new_constraints_are_installed(checkout: Checkout) -> None:
    checkout.run("status")
    checkout.pip_calls()
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "up to date" in checkout.run("status")[2]
    assert checkout.pip_calls()
    checkout.run("-k", "nothing", script="test")
    assert any("requirements-test.txt" in call for call in checkout.pip_calls()), "the tests' own mark is separate"


def test_an_interrupted_set_up_is_begun_again(checkout: Checkout) -> None:
    checkout.python(pip="touch half-made; sleep 20")
    process = checkout.start("status")
    until = time.monotonic() + 10
    while not checkout.calls.exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as INT, which a shell cannot trap where the tests run in the background
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "supervise: interrupted; the next start begins the set-up again"
    (checkout.folder / ".venv" / "half-made").touch()
    checkout.python()
    code, _, err = checkout.run("status")
    assert code == 0
    assert "an earlier set-up was interrupted" in err
    assert not (checkout.folder / ".venv" / "half-made").exists()
    assert checkout.run("status")[2] == ""


def test_a_killed_set_up_is_begun_again(checkout: Checkout) -> None:
    checkout.python(pip="kill -9 0")
    assert checkout.run("status")[0] == -signal.SIGKILL
    checkout.python()
    assert "an earlier set-up was interrupted" in checkout.run("status")[2]


@pytest.mark.parametrize(
    ("pip", "version", "words"),
    [
        ("exit 0", 1, "needs Python 3.11 or newer, and found none on PATH"),
        ("echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'; exit 1", 0, "the disk is full: "),
        ("echo 'WARNING: NewConnectionError: Temporary failure in name resolution'; exit 1", 0, "no package index could be reached"),
        ("echo 'ERROR: something else'; exit 1", 0, "the set-up failed: ERROR: something else. Details: "),
    ],
)
def test_an_error_is_one_line_and_code_3(checkout: Checkout, pip: str, version: int, words: str) -> None:
    checkout.python(pip=pip, version=version)
    code, out, err = checkout.run("x.toml")
    lines = [line for line in err.splitlines() if "first start" not in line and "CUDA build" not in line]
    assert (code, out, len(lines)) == (3, "", 1)
    assert lines[0].startswith(f"supervise: {words}")


def test_a_good_environment_survives_a_network_that_is_away(checkout: Checkout) -> None:
    checkout.run("status")
    (checkout.folder / ".venv" / "good").touch()
    venv_python = checkout.folder / ".venv" / "bin" / "python"
    checkout.python(pip="echo 'ERROR: No matching distribution found for pytest'; exit 1")
    shutil.copy(checkout.programs / "python3", venv_python)
    assert checkout.run(script="test")[0] == 3
    checkout.python()
    shutil.copy(checkout.programs / "python3", venv_python)
    assert checkout.run("x.toml")[2] == ""
    checkout.run("-k", "nothing", script="test")
    assert (checkout.folder / ".venv" / "good").exists()


def test_two_first_starts_at_once_set_up_once(checkout: Checkout) -> None:
    checkout.python(pip="sleep 0.2")
    first, second = checkout.start("status"), checkout.start("status")
    assert [process.wait(20) for process in (first, second)] == [0, 0]
    for process in (first, second):
        process.communicate()
    assert len(checkout.pip_calls()) == 2


def test_without_a_cpu_build_the_size_is_announced(checkout: Checkout) -> None:
    checkout.python(pip='case "$*" in *+cpu*) exit 1 ;; esac')
    code, _, err = checkout.run("status")
    assert code == 0
    assert "only the CUDA build of torch can be had here: up to 3 GB to download" in err
