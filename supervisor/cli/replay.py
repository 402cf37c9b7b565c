"""`supervise replay` decides again, by the scheduler of today, what a run has recorded."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from supervisor.errors import ExitCode

if TYPE_CHECKING:
    from supervisor.attempt.replay import Difference, Replayed

DIFFERENT = 1
"""Exit code when the scheduler of today decides something else."""


def replay(
    run: str | None = None, /, *, json: Annotated[bool, Parameter("--json", negative="", help="For programs: JSON.")] = False
) -> int:
    """Feed the scheduler every event that a run has recorded, and compare its actions with those of then, bit for bit."""
    import msgspec

    from supervisor.attempt.find import find_run
    from supervisor.attempt.replay import replay as play

    began = time.monotonic()
    found = play(find_run(run))
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write(_report(found, time.monotonic() - began) + "\n")
    sys.stdout.flush()
    return int(ExitCode.DONE) if found.difference is None else DIFFERENT


def _report(found: "Replayed", seconds: float) -> str:
    lives = "" if found.lives == 1 else f" of {found.lives} supervisors"
    lines = [f"{found.events} events{lives} replayed in {seconds:.1f} s, {found.actions} actions"]
    if found.gaps:
        lines.append(f"the recording was interrupted {found.gaps} times; each time it goes on from the state that was written down")
    if found.cut:
        lines.append(f"cut short within a line, when the supervisor was killed: {', '.join(found.cut)}")
    lines.append("the same decisions" if found.difference is None else _difference(found.difference))
    return "\n".join(lines)


def _difference(difference: "Difference") -> str:
    lines = [
        f"first difference: {difference.segment}, line {difference.line}, at {difference.at:.3f} s",
        f"  event     {bytes(difference.event).decode()}",
    ]
    if difference.raised:
        return "\n".join([*lines, f"  raises    {difference.raised}"])
    return "\n".join([*lines, f"  recorded  {bytes(difference.recorded).decode()}", f"  replayed  {bytes(difference.replayed).decode()}"])
