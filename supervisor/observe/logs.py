"""The supervisor's own log: structlog records go as JSON lines to `<attempt>/supervisor.jsonl`, and as readable lines to the console.

The file has everything, whatever level the console has: who wants it quiet does not throw the history away.
Nothing here can stop the run: a full disk, a closed terminal or a slow pipe loses lines, and the loss is counted and reported.
The console has a thread of its own, because a terminal may block for as long as somebody holds Ctrl-S.
"""

import contextlib
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO

import msgspec
import structlog

from supervisor.host.regular_file import open_regular
from supervisor.observe.log_format import cut, readable
from supervisor.observe.sanitize import one_line, plain_value

Console = Literal["readable", "json", "none"]
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_QUEUE: Final = 4096
"""Console lines that wait for a slow terminal before further ones are dropped."""
_SHORTEST_SECRET: Final = 6


class Secrets:
    """These values must not be seen in a log. They are replaced wherever they occur in a string, a key included."""

    def __init__(self) -> None:
        self._values: list[str] = []  # the longer first: one may be the head of another

    def register(self, value: str) -> None:
        """Hide this value from now on. Values under 6 characters are not registered: they would blot out ordinary text."""
        if len(value) >= _SHORTEST_SECRET and value not in self._values:
            self._values = sorted([*self._values, value], key=len, reverse=True)

    def hide(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._values:
                value = value.replace(secret, "***")
            return value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        return value


class LogFile:
    """A log file appends complete lines. `lost` counts lines that the disk did not take."""

    def __init__(self, path: Path) -> None:
        self._descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._torn = False
        self.lost = 0

    def write(self, line: bytes) -> bool:
        """Write a line; return whether the disk took it. After a line that a full disk took only in part, the next one begins afresh."""
        data = (b"\n" if self._torn else b"") + line + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            self.lost += 1
            return False
        if written < len(data):
            self._torn = True
            self.lost += 1
            return False
        self._torn = False
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class ConsoleWriter:
    """This writer writes lines to a stream from a thread of its own. `lost` counts the lines that a stuck or closed stream did not take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUE)
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def close(self, timeout_s: float) -> None:
        """Wait for what is queued, at most `timeout_s`."""
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # the terminal is gone, or the stream was closed
                self.lost += 1
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class Logs:
    """Logs are where the records go. `log` is the root logger; `log.bind(pipeline=…, engine=…)` gives one for a part. `level` is the console's."""

    def __init__(
        self, path: Path | None, *, run: str, level: str = "info", console: Console = "readable", stream: TextIO | None = None
    ) -> None:
        stream = stream if stream is not None else sys.stdout
        self.secrets = Secrets()
        self._file = LogFile(path) if path is not None else None
        self._console = ConsoleWriter(stream) if console != "none" else None
        self._mode = console
        self._level = _LEVELS[level]
        self._began = datetime.now().astimezone().date()
        self._terminal = stream.isatty()
        self._colour = console == "readable" and self._terminal and not os.environ.get("NO_COLOR")
        self._reported_lost = 0
        self.log: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            object(),  # never called: the last processor has written the record
            processors=[structlog.processors.add_log_level, self._stamp, self._failure, self._clean, self._emit],
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS["debug"]),
            context_class=dict,
            cache_logger_on_first_use=False,
        ).bind(run=run)

    @property
    def lost(self) -> int:
        """Return how many lines went nowhere, file and console together."""
        return (self._file.lost if self._file else 0) + (self._console.lost if self._console else 0)

    def say(self, line: str) -> None:
        """Show a line to the person at the console only (progress, a hint); nothing with `--json`."""
        if self._console is not None and self._mode == "readable":
            text: str = self.secrets.hide(one_line(line))
            self._console.write(cut(text, shutil.get_terminal_size().columns) if self._terminal else text)

    def close(self, timeout_s: float = 2.0) -> None:
        if self._console is not None:
            self._console.close(timeout_s)
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _stamp(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        stamp = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        first = {key: record.pop(key) for key in ("level", "event", "run", "pipeline", "engine", "incarnation") if key in record}
        return {"timestamp": stamp, **first, **record}

    @staticmethod
    def _failure(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Replace `exc_info` by the text of its traceback."""
        raised = record.pop("exc_info", None)
        if raised:
            error = raised if isinstance(raised, BaseException) else sys.exc_info()[1]
            if error is not None:
                record["traceback"] = "".join(traceback.format_exception(error))[-6000:]
        return record

    def _clean(self, _logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Secrets first: the cut must not leave the head of one. Then again, as cleaning may join what controls had parted.
        cleaned = {
            key: plain_value(self.secrets.hide(value), 6000 if key in ("traceback", "tail") else 2000) for key, value in record.items()
        }
        hidden: dict[str, Any] = self.secrets.hide(plain_value(cleaned, 6000, 6))
        return hidden

    def _emit(self, _logger: Any, _method: str, record: MutableMapping[str, Any]) -> str:
        line = msgspec.json.encode(record)
        if self._file is not None and self._file.write(line) and self._file.lost > self._reported_lost:
            lost, self._reported_lost = self._file.lost - self._reported_lost, self._file.lost
            self._emit(None, "warning", {**_head(record), "level": "warning", "event": "log lines lost", "lines": lost})
        if self._console is not None and _LEVELS[str(record["level"])] >= self._level:
            self._console.write(line.decode() if self._mode == "json" else self._readable(record))
        raise structlog.DropEvent

    def _readable(self, record: Mapping[str, Any]) -> str:
        """Return a line for the console, in local time; a run that goes on past midnight says the day, too."""
        width = shutil.get_terminal_size().columns if self._terminal else None
        return readable(record, self._colour, width=width, dated=datetime.now().astimezone().date() != self._began)


def _head(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("timestamp", "run") if key in record}
