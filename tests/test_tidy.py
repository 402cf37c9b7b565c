"""The repository's own rules.

What is excused stands in a list here, with its reason; an excuse that nothing needs any more fails.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import supervisor
from engines.lifecycle import state
from tests.harness import file_map, import_graph
from trainers.protocol.child_env import OUR_PATH

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("supervisor", "engines", "trainers") for path in sorted((CHECKOUT / folder).rglob("*.py"))]
OTHERS = [path for folder in ("tests", "bench", "examples") for path in sorted((CHECKOUT / folder).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text()) for path in SOURCES + OTHERS}
PACKAGES = sorted(path.parent for path in SOURCES if path.name == "__init__.py" and "cpu" not in path.parts)

LONGEST = 400
LONG_FOR_A_REASON = {
    "trainers/client/trainshed/__init__.py": "the client is one file, good alone when it is copied",
    "supervisor/host/processes/guardian.py": "the guardian is one file, executed without a path to others",
}
SHORTEST = 40
SHORT_FOR_A_REASON = {
    "supervisor.runtime.kinds.embedded": "a kind of engine is one file a side",
    "supervisor.runtime.kinds.registry": "the table of kinds, where a row is added",
    "supervisor.views.exports": "what one command prints, apart from tables",
    "trainers.protocol.seeds": "what two processes must agree on; the client repeats it, and a test compares",
    "supervisor.views.progress": "what a console shows while a run goes on, apart from tables",
}
FULL_FOR_A_REASON: dict[str, str] = {}
PATHS_FOR_A_REASON = {
    "tests/harness/faulty_trainer.py": "a rank has nothing of ours on its path but the client, and this one needs its neighbour"
}
BORROWED_FOR_A_REASON: dict[str, str] = {}
"""Tests that import from other tests."""


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def judge(broken: set[str], excused: dict[str, str]) -> None:
    """Fail for what is broken without an excuse, and for an excuse without need."""
    assert not broken - set(excused)
    assert not set(excused) - broken, "excused, and nothing is wrong with it any more"


def definitions(path: Path) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(TREES[path]) if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_checkout_is_what_is_imported() -> None:
    assert supervisor.__file__ is not None
    assert Path(supervisor.__file__).is_relative_to(CHECKOUT)


def test_the_diagram_in_the_architecture_is_the_table() -> None:
    assert state.diagram() in (CHECKOUT / "ARCHITECTURE.md").read_text()


def test_files_are_not_long() -> None:
    judge({name(path) for path in SOURCES if len(path.read_text().splitlines()) > LONGEST}, LONG_FOR_A_REASON)


def test_no_splinters() -> None:
    """A file of few lines with one importer belongs to its importer's file, or to its subject's."""
    graph = import_graph.build()
    short = {
        path: ".".join(path.relative_to(CHECKOUT / "trainers/client" if "client" in path.parts else CHECKOUT).with_suffix("").parts)
        for path in SOURCES
        if path.name != "__init__.py" and len(path.read_text().splitlines()) < SHORTEST
    }
    judge(
        {module for module in short.values() if module in graph.modules and len(graph.find_modules_that_directly_import(module)) == 1},
        SHORT_FOR_A_REASON,
    )


def test_folders_are_not_full() -> None:
    judge({folder for folder, count in import_graph.files_of_folders().items() if count > import_graph.MOST_FILES}, FULL_FOR_A_REASON)


def test_purity_is_claimed_only_where_it_is_held() -> None:
    """A module claims it for itself; the docstring of a package may say which of its rooms are pure."""
    (contract,) = [contract for contract in import_graph.contracts() if contract["name"].startswith("PURE")]
    held = tuple(module.replace(".", "/") + "/" for module in contract["source_modules"])
    claimed = {name(path) for path in SOURCES if re.search(r"\bPURE\b|\bPure\b", path.read_text())}
    above = {
        path
        for path in claimed
        if path.endswith("/__init__.py") and any(room.startswith(path.removesuffix("__init__.py")) for room in held)
    }
    assert not {path for path in claimed - above if not path.startswith(held)}


def test_the_architecture_names_every_package() -> None:
    page = (CHECKOUT / "ARCHITECTURE.md").read_text()
    packages = [name(package) for package in PACKAGES if package.parent != CHECKOUT]
    assert [
        package for package in packages if "/".join(package.split("/")[-2:]) not in page and f"{package.split('/')[-1]}/" not in page
    ] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(name(path) for path in sorted((CHECKOUT / "docs").glob("*.md")))])
def test_pages_name_what_is_there(page: str) -> None:
    """Files and folders that a page names by their path from the checkout exist."""
    named = re.findall(r"`((?:supervisor|engines|trainers|tests|bench|bin|examples|docs)/[\w./-]*)", (CHECKOUT / page).read_text())
    assert [path for path in named if not (CHECKOUT / path).exists()] == []


@pytest.mark.parametrize("package", PACKAGES, ids=name)
def test_a_package_says_what_it_is_and_names_its_files(package: Path) -> None:
    """Its docstring is the theory of the room: what it is for, what it may know, and each of its parts by name."""
    theory = ast.get_docstring(TREES[package / "__init__.py"]) or ""
    parts = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    parts |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert not {part for part in parts if not re.search(rf"\b{part}\b", theory)}, "not in the docstring of the package"


def test_retired_words_name_nothing() -> None:
    """The list is docs/words.md's. Files and classes, in tests and benches too; a word is a part of a name: `RunTurn` has `turn`."""
    retired = set(re.findall(r"`(\w+)`", (CHECKOUT / "docs" / "words.md").read_text().partition("## Retired")[2])) | {"util", "helper"}
    assert len(retired) > 10
    named = [(name(path), path.stem) for path in SOURCES + OTHERS]
    named += [(name(path), node.name) for path in SOURCES + OTHERS for node in definitions(path) if isinstance(node, ast.ClassDef)]
    assert [where for where in named if retired & {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", where[1])}] == []


def test_nobody_changes_the_path() -> None:
    """Imports go by the names of the checkout, in tests and benches too."""
    broken = {
        name(path)
        for path in SOURCES + OTHERS
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.path.insert", "sys.path.append", "sys.path.extend")
    }
    judge(broken, PATHS_FOR_A_REASON)


def test_tests_share_by_the_harness() -> None:
    """What two tests need stands in tests/harness or in a conftest."""
    broken = {
        name(path)
        for path in OTHERS
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom) and re.match(r"tests\..*\btest_", f"{node.module}.")
    }
    judge(broken, BORROWED_FOR_A_REASON)


def test_functions_can_be_read_at_once() -> None:
    for path in SOURCES:
        for node in definitions(path):
            if not isinstance(node, ast.ClassDef):
                length = (node.end_lineno or node.lineno) - node.lineno
                assert length <= 75, f"{path.relative_to(CHECKOUT)}: {node.name} has {length} lines"


def test_no_pickle_no_eval_no_shell() -> None:
    """Only the prewarmed pool may unpickle, and only what the supervisor itself wrote."""
    allowed = {"supervisor/host/processes/pool.py", "supervisor/host/processes/pool_child.py"}
    for path in SOURCES:
        if str(path.relative_to(CHECKOUT)) in allowed:
            continue
        for node in ast.walk(TREES[path]):
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


def test_the_map_of_files_in_the_architecture_is_today_s() -> None:
    """`python -m tests.harness.file_map` writes it."""
    assert file_map.BEGIN + file_map.file_map() + file_map.END in (CHECKOUT / "ARCHITECTURE.md").read_text()
