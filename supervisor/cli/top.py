"""`supervise top` shows a run on one screen, again and again. It reads the run's files; only a key that asks for something speaks to the supervisor."""

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from supervisor.cli.history import RunName, name_of
from supervisor.errors import ExitCode, SupervisorError, UsageError

if TYPE_CHECKING:
    from supervisor.observe.control_socket import Verb
    from supervisor.views.history.reader import HistoryReader

EVERY_S: Final = 1.0
SAID_S: Final = 5.0
"""How long an answer stays on the screen."""
KEYS: Final = "↑↓ choose  p pause  r resume  d drain  l logs  q quit"
_ACTS: Final[dict[str, "Verb"]] = {"p": "pause", "r": "resume", "d": "drain"}
_ARROWS: Final = {"\x1b[A": -1, "\x1bOA": -1, "k": -1, "\x1b[B": 1, "\x1bOB": 1, "j": 1, "\t": 1}
_UNKNOWN: Final = (80, 24)


def top(
    run: RunName = None,
    /,
    *,
    once: Annotated[bool, Parameter("--once", negative="", help="Print one screen and end.")] = False,
    width: Annotated[int | None, Parameter("--width", help="Columns. Default: the terminal's.")] = None,
    height: Annotated[int | None, Parameter("--height", help="Lines. Default: the terminal's.")] = None,
) -> int:
    """Show a run on one screen: who has which GPU, what each pipeline does or waits for, what happened last."""
    from supervisor.attempt.find import find_run
    from supervisor.views.history.reader import HistoryReader

    attempt = find_run(run)
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal; `top --once` prints one screen.")
    reader = HistoryReader(attempt)
    try:
        reader.poll(time.time())
        if not reader.history.pipelines:
            raise UsageError(f"{attempt}: nothing is recorded of this run yet.")
        if once:
            _print(reader, width, height)
            return int(ExitCode.DONE)
        chosen = _watch(reader, width, height)
    finally:
        reader.close()
    if chosen:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "supervisor", "logs", str(attempt), chosen, "-f"])
    return int(ExitCode.DONE)


def _print(reader: "HistoryReader", width: int | None, height: int | None) -> None:
    from rich.console import Console

    from supervisor.views.history.screen import Screen, screen

    columns, lines = shutil.get_terminal_size(_UNKNOWN)
    size = Screen(width or columns, height or lines)
    console = Console(width=size.width, no_color=None if sys.stdout.isatty() else True)
    for line in screen(reader.history, name_of(reader.attempt), size):
        console.print(line, crop=False, soft_wrap=True)


def _watch(reader: "HistoryReader", width: int | None, height: int | None) -> str:
    """Draw until somebody has seen enough. Return the pipeline whose logs are wanted, or an empty text."""
    from rich.console import Console, Group
    from rich.live import Live

    from supervisor.views.history.screen import Screen, screen

    console = Console()
    names = list(reader.history.pipelines)
    place, said, said_until = 0, "", 0.0
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            now = time.monotonic()
            reader.poll(time.time())
            columns, lines = shutil.get_terminal_size(_UNKNOWN)
            size = Screen(width or columns, height or lines, names[place], KEYS, said if now < said_until else "")
            live.update(Group(*screen(reader.history, name_of(reader.attempt), size)), refresh=True)
            key = _key(EVERY_S)
            if key in ("q", "\x04"):
                return ""
            if key == "l":
                return names[place]
            place = (place + _ARROWS.get(key, 0)) % len(names)
            if key in _ACTS:
                said, said_until = _ask(reader.attempt, _ACTS[key], names[place]), time.monotonic() + SAID_S
    return ""


def _ask(attempt: Path, verb: "Verb", pipeline: str) -> str:
    """Ask the supervisor for something of a pipeline; return its answer, or why there is none."""
    from supervisor.observe.control_socket import ActRequest, Declined, Done, ask, parse_target
    from supervisor.observe.sanitize import one_line

    try:
        reply = ask(attempt / "control.sock", ActRequest(verb, parse_target(pipeline)), timeout_s=5.0)
    except SupervisorError as error:
        return one_line(str(error), 300)
    return one_line(reply.text or "done", 300) if isinstance(reply, Done | Declined) else ""


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Read single keys from the terminal, and give it back as it was."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _key(within: float) -> str:
    """Return what was typed within so many seconds; an arrow comes as several characters at once."""
    ready, _, _ = select.select([sys.stdin], [], [], within)
    return os.read(sys.stdin.fileno(), 8).decode(errors="replace") if ready else ""
