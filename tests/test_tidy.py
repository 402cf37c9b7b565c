"""The repository's own rules."""

import ast
import subprocess
import sys
from pathlib import Path

import supervisor
from engines.lifecycle import state
from trainers.protocol.child_env import OUR_PATH

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("supervisor", "engines", "trainers") for path in sorted((CHECKOUT / folder).rglob("*.py"))]
LONG_FOR_A_REASON = {"trainers/client/trainshed/__init__.py": 1000}
"""The client must be one file."""


def test_the_checkout_is_what_is_imported() -> None:
    assert supervisor.__file__ is not None
    assert Path(supervisor.__file__).is_relative_to(CHECKOUT)


def test_the_diagram_in_the_architecture_is_the_table() -> None:
    assert state.diagram() in (CHECKOUT / "ARCHITECTURE.md").read_text()


def test_files_have_one_subject() -> None:
    for path in SOURCES:
        name = str(path.relative_to(CHECKOUT))
        lines = len(path.read_text().splitlines())
        assert lines <= LONG_FOR_A_REASON.get(name, 350), f"{name} has {lines} lines"
        assert path.stem not in ("utils", "util", "common", "helpers", "manager", "misc"), name


def test_functions_can_be_read_at_once() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno
                assert length <= 75, f"{path.relative_to(CHECKOUT)}: {node.name} has {length} lines"


def test_no_pickle_no_eval_no_shell() -> None:
    """Only the prewarmed pool may unpickle, and only what the supervisor itself wrote."""
    allowed = {"supervisor/host/processes/pool.py", "supervisor/host/processes/pool_child.py"}
    for path in SOURCES:
        if str(path.relative_to(CHECKOUT)) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "marshal"} & set(names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.keyword) and node.arg == "shell":
                raise AssertionError(f"{path}: shell=")


def test_supervisor_side_modules_never_load_torch() -> None:
    modules = (
        "supervisor.cli.main, supervisor.runtime.run, engines.control, engines.gateway.routes.server, trainers.rewards, trainers.weights"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": OUR_PATH}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
