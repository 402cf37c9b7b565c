"""Why a child ended, from its exit and the last lines of its log."""

from pathlib import Path

import pytest

from supervisor.host.processes.child import Status
from supervisor.observe.crash_report import KEPT_COLUMNS, KEPT_LINES, TAIL, CrashClass, crash_record, exit_class
from supervisor.observe.logs import Secrets


@pytest.mark.parametrize(
    ("log", "code", "signal", "expected"),
    [
        (b"bye", 0, None, CrashClass.CLEAN),
        (b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1, None, CrashClass.MEMORY),
        (b"RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", 1, None, CrashClass.MEMORY),
        (b"OSError: [Errno 98] error while attempting to bind: address already in use", 1, None, CrashClass.PORT),
        (b"torch.AcceleratorError: CUDA error: an illegal memory access was encountered", 1, None, CrashClass.DEVICE),
        (b"torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp", None, 6, CrashClass.DEVICE),
        (b"ModuleNotFoundError: No module named 'sglang'", 1, None, CrashClass.CONFIG),
        (b"launch_server.py: error: unrecognized arguments: --no-such", 2, None, CrashClass.CONFIG),
        (b"working", None, 9, CrashClass.KILLED),
        (b"working", 137, None, CrashClass.KILLED),
        (b"Fatal Python error: Segmentation fault", None, 11, CrashClass.SIGNAL),
        (b"ValueError: x", 1, None, CrashClass.ERROR),
        (b"", 1, None, CrashClass.ERROR),
        (b"ImportError: optional thing\nlater: CUDA error: device-side assert triggered", 1, None, CrashClass.DEVICE),
    ],
)
def test_classes(log: bytes, code: int | None, signal: int | None, expected: CrashClass) -> None:
    assert exit_class(log, Status(code, signal)).crash is expected


@pytest.mark.parametrize(
    ("log", "code", "signal", "own"),
    [
        (b"Traceback\n  File\nTypeError: unsupported operand", 1, None, True),
        (b"AssertionError", 1, None, True),
        (b"RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", 1, None, True),
        (b"ModuleNotFoundError: No module named 'trl'", 1, None, True),
        (b"trainshed.RolloutRefused: bad_request: prompt is empty", 1, None, True),
        (b"trainshed.RolloutRefused: no_engine: no engine of p1 can come back", 1, None, False),
        (b"trainshed.SamplesFailed: 8 of 8 samples failed; sample 0: bad_request: Requested token count exceeds", 1, None, True),
        (b"trainshed.SamplesFailed: 2 of 8 samples failed; sample 1: lost: its engine died", 1, None, False),
        (b"RuntimeError: [pair.cc] Connection closed by peer [127.0.0.1]:4711", 1, None, False),
        (b"ValueError: the socket timed out", 1, None, False),
        (b"requests.exceptions.ConnectionError: refused", 1, None, False),
        (b"RuntimeError: CUDA error: device-side assert triggered", 1, None, False),
        (b"torch.OutOfMemoryError: CUDA out of memory", 1, None, False),
        (b"TypeError: x", None, 9, False),
        (b"TypeError: x", None, 11, False),
        (b"TypeError: x\nbye", 3, None, False),
        (b"killed by the user", 1, None, False),
        (b"", 1, None, False),
    ],
)
def test_only_what_a_script_raises_by_itself_is_its_own_error(log: bytes, code: int | None, signal: int | None, own: bool) -> None:
    assert bool(exit_class(log, Status(code, signal)).error) is own


def test_last_lines_are_harmless_and_bounded() -> None:
    log = b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x00\x08nul\r50%\r100%\n\xff\xfe\n" + b"x" * 5000 + b"\n" + "\u2028\x9b1mtail".encode()
    lines = exit_class(log, Status(1)).last_lines
    assert lines[0] == "red nul"
    assert lines[1:3] == ("50%", "100%")
    assert len(lines[4]) == KEPT_COLUMNS
    assert lines[-1] == "tail", "a control sequence in eight bits is one, too"
    assert len(exit_class(b"line\n" * 1000, Status(1)).last_lines) == KEPT_LINES
    assert exit_class(b"a\tb", Status(1)).last_lines == ("a    b",)


SECRET = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    "written",
    [
        f"key {SECRET}",
        "x" * (KEPT_COLUMNS - 5) + SECRET,  # the cut must leave no head of it
        f"key sk-\x1b[1m{SECRET[3:]}",
        "x" * 9999 + SECRET + "y" * (TAIL - 6),  # nor the beginning of the tail an end of it
        "x" * 9999 + SECRET + "y" * (TAIL + (4 << 10) - 6),
    ],
)
def test_no_part_of_a_secret_is_in_a_crash_record(tmp_path: Path, written: str) -> None:
    secrets = Secrets()
    secrets.register(SECRET)
    log = tmp_path / "log"
    log.write_text(written)
    lines = crash_record(log, Status(1), secrets.hide).last_lines
    assert lines
    assert not any(part in line for line in lines for part in ("sk-", "abcdef", "012345"))
