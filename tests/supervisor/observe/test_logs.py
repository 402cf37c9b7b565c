"""The supervisor's log takes whatever it is given, one record a line, and never stops the run."""

import errno
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.observe.log_format import readable
from supervisor.observe.logs import Console, ConsoleWriter, LogFile, Logs


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logs(path: Path, console: Console = "none", stream: io.StringIO | None = None, level: str = "info") -> Logs:
    return Logs(path, run="q-1", level=level, console=console, stream=stream)


def test_a_record_on_file_and_console(tmp_path: Path) -> None:
    out = io.StringIO()
    with logs(tmp_path / "s.jsonl", "readable", out) as log:
        log.log.bind(pipeline="p1", engine=0).info("ready", incarnation=2, port=20001, took_s=0.25)
        log.log.debug("not told")
        log.say("step 1/5")
    record, quiet = records(tmp_path / "s.jsonl")
    assert (quiet["event"], quiet["level"]) == ("not told", "debug")
    assert list(record)[:7] == ["timestamp", "level", "event", "run", "pipeline", "engine", "incarnation"]
    assert record["timestamp"].endswith("Z")
    assert record["level"] == "info"
    first, second = out.getvalue().splitlines()
    assert first.split(" ", 1)[1] == "info    p1/engine/0 ready incarnation=2 port=20001 took_s=0.25"
    assert second == "step 1/5"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_file_has_everything_whatever_the_console_shows(tmp_path: Path, level: str) -> None:
    out = io.StringIO()
    said = ["debug", "info", "warning", "error"]
    with logs(tmp_path / "s.jsonl", "readable", out, level) as log:
        for word in said:
            getattr(log.log, word)(word)
    assert [record["event"] for record in records(tmp_path / "s.jsonl")] == said
    assert [line.split()[1] for line in out.getvalue().splitlines()] == said[said.index(level) :]


def test_a_line_for_people_has_the_time_of_the_place_and_a_terminal_s_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        record = {
            "timestamp": "2026-11-27T23:03:04.123Z",
            "level": "info",
            "event": "step done",
            "pipeline": "p1",
            "group": "trainer",
            "a": "x" * 30,
            "b": 1,
        }
        assert readable(record, False).startswith("08:03:04.123 info    p1/trainer step done a=xxx")
        assert readable(record, False, dated=True).startswith("2026-11-28 08:03:04.123 info ")
        assert readable(record, False, width=60) == "08:03:04.123 info    p1/trainer step done …"
        long = readable({**record, "event": "virtual GPUs: " + "y" * 50}, False, width=60)
        assert len(long) == 60
        assert long.endswith("yyy…")
        assert len(readable({**record, "level": "error"}, False, width=60)) > 60, "what went wrong is told whole"
        assert readable({"timestamp": "nonsense", "event": "x"}, False).startswith("nonsense info")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_json_on_the_console(tmp_path: Path) -> None:
    out = io.StringIO()
    with logs(tmp_path / "s.jsonl", "json", out) as log:
        log.log.warning("hot", degrees=99)
        log.say("for people only")
    assert [json.loads(line)["degrees"] for line in out.getvalue().splitlines()] == [99]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(max_size=50), st.dictionaries(st.text(max_size=8), st.one_of(st.text(), st.integers(), st.floats(), st.binary()), max_size=4)
)
def test_one_record_is_one_line_whatever_it_says(tmp_path: Path, event: str, fields: dict[str, Any]) -> None:
    path = tmp_path / "s.jsonl"
    path.unlink(missing_ok=True)
    out = io.StringIO()
    with logs(path, "readable", out) as log:
        log.log.info("child said", text=event, fields=fields, tail=event * 100)
    assert len(path.read_bytes().splitlines()) == 1
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()
    assert len(records(path)) == 1


def test_secrets_are_not_seen(tmp_path: Path) -> None:
    out = io.StringIO()
    with logs(tmp_path / "s.jsonl", "readable", out) as log:
        log.secrets.register("hunter2hunter2")
        log.secrets.register("abc")
        log.log.info("key hunter2hunter2", env={"hunter2hunter2": ["x=hunter2hunter2"]}, split="hunter2\x00hunter2", short="abc")
        log.say("hunter2hunter2")
    text = (tmp_path / "s.jsonl").read_text() + out.getvalue()
    assert "hunter2" not in text
    assert "***" in text
    assert "abc" in text


def test_a_traceback_is_part_of_the_record(tmp_path: Path) -> None:
    with logs(tmp_path / "s.jsonl") as log:
        try:
            raise ValueError("broken")
        except ValueError:
            log.log.exception("failed")
    (record,) = records(tmp_path / "s.jsonl")
    assert "ValueError: broken" in record["traceback"]


def test_a_full_disk_loses_lines_and_says_so_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with logs(tmp_path / "s.jsonl") as log:
        log.log.info("one")
        write, full = os.write, [True]

        def limited(descriptor: int, data: bytes) -> int:
            if full[0] and len(data) > 60:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", limited)
        log.log.info("two")
        log.log.info("three")
        full[0] = False
        log.log.info("four")
        assert log.lost == 2
    told = records(tmp_path / "s.jsonl")
    assert [record["event"] for record in told] == ["one", "four", "log lines lost"]
    assert told[-1]["lines"] == 2


def test_a_line_that_went_half_on_the_disk_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path / "s")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    assert not file.write(b"abcdef")
    monkeypatch.setattr(os, "write", write)
    assert file.write(b"ghi")
    file.close()
    assert (tmp_path / "s").read_bytes() == b"abc\nghi\n"


def test_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path / "log")
    with monkeypatch.context() as full, open("/dev/full", "wb") as device:
        full.setattr(file, "_descriptor", device.fileno())
        assert not file.write(b"x")
    assert file.lost == 1
    file.close()


def test_only_a_regular_file_is_a_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match=r"\[Errno"):
        LogFile(tmp_path / "log")


class Stuck(io.StringIO):
    """A terminal on which somebody holds Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(20)
        return super().write(text)


def test_a_stuck_terminal_does_not_hold_anybody_up() -> None:
    stream = Stuck()
    writer = ConsoleWriter(stream)
    for number in range(6000):
        writer.write(str(number))
    assert writer.lost > 1000
    stream.released.set()
    writer.close(10)
    assert stream.getvalue().startswith("0\n1\n")


def test_a_closed_terminal_is_survived() -> None:
    stream = io.StringIO()
    stream.close()
    writer = ConsoleWriter(stream)
    writer.write("x")
    writer.close(5)
    assert writer.lost == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_values_are_cut_on_a_terminal_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    names = [f"VARIABLE_{number}" for number in range(50)]
    seen = {}
    for stream in (io.StringIO(), Terminal()):
        with logs(tmp_path / "s.jsonl", "readable", stream) as log:
            log.log.info("told", names=names)
            log.log.error("broken", traceback="x" * 5000)
        seen[stream.isatty()] = stream.getvalue()
    assert "…" not in seen[False]
    assert "VARIABLE_49" in seen[False]
    assert "x" * 5000 in seen[False]
    assert "VARIABLE_49" not in seen[True]
    assert seen[True].splitlines()[0].endswith("…")
