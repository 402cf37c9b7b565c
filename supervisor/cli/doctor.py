"""`supervise doctor` says whether this machine is fit for runs on GPUs, and what to do where it is not."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from supervisor.cli import streams
from supervisor.errors import ExitCode

if TYPE_CHECKING:
    from supervisor.config.schema.tables import Config


def doctor(
    file: Path | None = None,
    /,
    *,
    python: Annotated[str | None, Parameter("--python", help="An interpreter with SGLang to look at, where no file names one.")] = None,
    cycle: Annotated[
        bool, Parameter("--cycle", negative="--no-cycle", help="Allocate 256 MiB on each card that nobody uses, and measure it.")
    ] = True,
    json: Annotated[bool, Parameter("--json", negative="", help="For programs: JSON on standard output.")] = False,
) -> int:
    """Look at driver, cards, links, libraries and memory, and measure one allocation on each card: for FILE's run, or for any.

    Exit code 3 where something must be mended. Send the output of `--json` along when you report that something fails.
    """
    import msgspec

    from supervisor.observe.diagnosis import diagnose
    from supervisor.views.doctor import show

    found = diagnose(_config(file), dict(os.environ), python=python, cycle=cycle)
    if json:
        streams.say(msgspec.json.encode(found).decode())
    else:
        with streams.lasting():
            show(found)
    return int(ExitCode.DONE if found.well else ExitCode.SET_UP)


def _config(file: Path | None) -> "Config | None":
    """Read a file without looking up its GPUs, which is what the doctor does himself. Raises ConfigError."""
    from supervisor.config.load import load

    return load(file).config if file is not None else None
