"""For all tests."""

import signal
from pathlib import Path

import pytest

from tests.harness.gpu_box import library

signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""Under nohup it is ignored, and every child would inherit that: those who hang up a terminal here would wait for ever."""
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
"""The same of a Ctrl-C, where a shell has started us in the background."""

TESTS = Path(__file__).resolve().parent
REAL = ("runs", "sglang", "stacks", "clients")
"""Folders of tests that start whole runs, real engines, or trainers and clients of others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark whole folders, so that `bin/test --fast` leaves them out."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in REAL:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted driver, compiled (`harness/gpu_box.py`). It needs a C compiler, as an environment for SGLang does."""
    return library(tmp_path_factory.mktemp("nvml"))
