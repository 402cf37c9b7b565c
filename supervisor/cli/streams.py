"""A program can lose these standard streams without ending: nobody reads them any more, or they were closed before it began."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any, TextIO

from cyclopts import Parameter

Json = Annotated[bool, Parameter("--json", negative="", help="For programs: JSON on standard output.")]


class Lasting:
    """This text stream swallows what its reader does not take: what a run comes to does not depend on who watches it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = False

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._lose()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        """Send what is still in the buffer to nowhere, or the interpreter would fail with it at its end."""
        self.lost = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            pass
        finally:
            os.close(nowhere)

    def isatty(self) -> bool:
        return not self.lost and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    @property
    def errors(self) -> str | None:
        return self._stream.errors


def present() -> None:
    """Replace a stream that was closed before we began (`>&-`, which Python calls None) by one that goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (it lasts as long as we do)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Keep either standard stream from ending us."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        setattr(sys, name, Lasting(stream))
    try:
        yield
    finally:
        for name, stream in streams.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)


def on_terminal() -> bool:
    """Return whether a person sits at one of the standard streams: its end is then our end."""
    return any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def say(line: str) -> None:
    """Write a line to standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """Write a value for programs, on one line."""
    import msgspec

    say(msgspec.json.encode(value).decode())


def note(text: str) -> None:
    """Write a line for the person, beside what a program may read from standard output."""
    sys.stderr.write(f"supervise: {text}\n")
    sys.stderr.flush()
