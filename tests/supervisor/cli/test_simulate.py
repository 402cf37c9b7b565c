"""`plan` and `simulate`: what docs/simulation.md shows is what comes out, and what is wrong is said of the file."""

import json
import re
from pathlib import Path

import pytest

from supervisor.cli.main import main

CHECKOUT = Path(__file__).resolve().parents[3]
PAGE = (CHECKOUT / "docs" / "simulation.md").read_text()


def block(kind: str) -> str:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]


def test_the_workload_of_the_page_and_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.json").write_text(block("json"))
    assert main(["simulate", str(tmp_path / "two.json"), "--policy", "all"]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    shown = [" ".join(line.split()) for line in PAGE.splitlines() if re.match(r"    (scenario|two) ", line)]
    assert len(shown) == 4
    assert set(shown) <= lines
    assert main(["simulate", str(tmp_path / "two.json"), "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["scenarios"]
    listed = re.search(r'"scenarios": \[\{(.*?)\}', PAGE)
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed[1])) == set(figures)


def test_the_case_of_the_page_and_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cases.jsonl").write_text(block("jsonl"))
    assert main(["plan", str(tmp_path / "cases.jsonl")]) == 0
    assert capsys.readouterr().out == block("answer")


@pytest.mark.parametrize("command", ["plan", "simulate"])
@pytest.mark.parametrize("content", [None, "{", "[1]", '{"gpus": "x"}'])
def test_errors_name_the_file(command: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "given.json"
    if content is not None:
        file.write_text(content)
    assert main([command, str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"supervise: {file}: ")


def test_a_missing_file_is_the_first_thing_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tmp_path / "nosuch.toml")]) == 2
    err = capsys.readouterr().err
    assert "No such file" in err
    assert "--train-s" not in err
    assert main(["simulate", str(CHECKOUT / "examples" / "quickstart.toml")]) == 2
    assert "Guess --train-s" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_the_help_says_where_the_format_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "docs/simulation.md" in capsys.readouterr().out.replace("\n", "")
