"""What every file of whole runs shares: runs that are stopped when their test ends, whatever became of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.supervised_run import Run


@pytest.fixture
def started() -> Iterator[list[Run]]:
    """Yield a list; what is put into it is stopped at the end."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.stop()


@pytest.fixture
def start(tmp_path: Path, started: list[Run]) -> Callable[..., Run]:
    """Return what starts a run of a file, with further arguments, in the test's folder."""

    def begin(file: Path, *arguments: str) -> Run:
        started.append(Run(tmp_path, file, *arguments))
        return started[-1]

    return begin
