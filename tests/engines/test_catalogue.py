"""The catalogue of failures (docs/recovery.md) is whole: each of F1..F25 has a test of that name, a mutant that shows it can fail, and a row."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.campaigns import mutants

CHECKOUT = Path(__file__).resolve().parents[2]

FILES = (
    "tests/engines/lifecycle/test_health.py",
    "tests/runs/test_groups.py",
    "tests/supervisor/scheduler/test_engines.py",
    "tests/supervisor/scheduler/test_engine_teardown.py",
)
DEFINED = [
    node.name
    for name in FILES
    for node in ast.walk(ast.parse((CHECKOUT / name).read_text()))
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]
ROWS = [line for line in (CHECKOUT / "docs" / "recovery.md").read_text().splitlines() if line.startswith("| F")]


@pytest.mark.parametrize("number", range(1, 26))
def test_each_failure_has_a_test_a_mutant_and_a_row(number: int) -> None:
    assert [name for name in DEFINED if f"f{number}" in name.split("_")]
    assert [name for name in mutants.MUTANTS if name.startswith(f"f{number} ")]
    assert [row for row in ROWS if re.match(rf"\| F{number} \|", row)]


def test_the_rows_count_what_there_is() -> None:
    files = {"pure": FILES[0], "host": FILES[1], "rules": FILES[2], "ends": FILES[3]}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *FILES]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=100)
    cases = [line.split("::", 1) for line in done.stdout.splitlines() if "::" in line]
    for row in ROWS:
        file = ""
        for word, name, number in re.findall(r"(pure|host|rules|ends)?,? ?`([fr]\d\w*)`(?: (\d+))?", row.split("|")[4]):
            file = files[word] if word else file
            found = [case for of, case in cases if of == file and case.startswith(f"test_{name}_")]
            assert len(found) == int(number or 1), f"{row[:6]} {file} {name}: {len(found)}"


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_each_mutant_can_be_planted(name: str) -> None:
    """The code that it changes is there, once."""
    assert mutants.MUTANTS[name].mutated()
