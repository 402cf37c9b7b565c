"""Interpreters that have no SGLang, and what SGLang leaves in /dev/shm."""

import mmap
import os
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import pytest

from supervisor.host.processes.child import SpawnFailed
from supervisor.host.processes.guardian import TRACES, sweep
from supervisor.runtime.kinds.sglang import _version, open_in_shm


def interpreter(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_says_which_sglang_it_has(tmp_path: Path) -> None:
    assert _version(interpreter(tmp_path, "echo 0.5.23"), {}) == "0.5.23"


def test_one_without_it_is_named() -> None:
    with pytest.raises(SpawnFailed, match=r"has no SGLang; name the interpreter"):
        _version(sys.executable, {})


def test_one_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed, match="does not say"):
        _version(str(tmp_path / "nowhere"), {})
    with pytest.raises(SpawnFailed, match="has no SGLang"):
        _version(interpreter(tmp_path, "exit 3"), {})


def test_what_a_process_has_mapped_is_found_by_its_name() -> None:
    descriptor, name = tempfile.mkstemp(prefix="sglang_loads_test", dir="/dev/shm")
    _, other = tempfile.mkstemp(prefix="unrelated", dir="/dev/shm")
    try:
        os.ftruncate(descriptor, 4096)
        with mmap.mmap(descriptor, 4096):
            lock = get_context("spawn").Lock()  # the C library maps a semaphore before it has its name
            found = open_in_shm(frozenset([os.getpid()]))
            semaphore = Path("/dev/shm") / f"sem.{lock._semlock.name.lstrip('/')}"  # type: ignore[attr-defined]
            assert {Path(name), semaphore} <= found
            assert Path(other) not in found
    finally:
        os.close(descriptor)
        os.unlink(name)
        os.unlink(other)


def test_the_dead_have_nothing() -> None:
    assert open_in_shm(frozenset([2**22 - 1])) == set()


def test_what_a_killed_supervisor_had_noted_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """The guardian does it, and the next start after both were killed."""
    made = [Path(tempfile.mkstemp(prefix=prefix, dir="/dev/shm")[1]) for prefix in ("sglang_loads_test", "unrelated", "sem.mp-test")]
    run = tmp_path / "trainshed-run"
    (run / ".tmp").mkdir(parents=True)
    note = "".join(f"{path.name}\n" for path in made[:2]) + f"../shm/{made[2].name}\n/etc/passwd\nsglang_loads_long_gone\n\xff\n"
    (run / ".tmp" / f"p1.0.1{TRACES}").write_text(note, "latin-1")
    try:
        sweep(str(run))
        assert [path.exists() for path in made] == [False, True, True]
        assert not run.exists()
    finally:
        for path in made:
            path.unlink(missing_ok=True)
