"""The types of this module say who is to blame for an error, and the exit codes say it to a shell.

The operator's configuration or command is to blame for a `ConfigError` or a `UsageError`, the machine for a `SetUpError`. Every other
exception that reaches the command line is a bug of ours. That a pipeline failed, was stopped or could not be cleaned up is no exception:
a run ends with it as its outcome (`supervisor.attempt.outcome`).

An error carries what a reader of it may want to know as fields (`key`, `value`, `problem`, `remedy`). Its text is made from them, and
nobody takes the text apart again.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

import msgspec


class ExitCode(IntEnum):
    """What `bin/supervise` exits with. `code.meaning` is the sentence of the README's table."""

    DONE = 0
    """Every trainer ended by itself with exit code 0, and nothing is left behind. How many steps each did, its summary says: a script that
    only sends requests does none, and one may have found that it is done early."""
    CONFIGURATION = 2
    """The configuration or the command line is wrong; nothing was started."""
    SET_UP = 3
    """The machine could not give what the configuration asks for (a port, shared memory, a GPU, room on the disk); the run never began."""
    PIPELINE_FAILED = 4
    """A pipeline failed for good: its restart budget is spent, or its model could not be made. The others went on to their end."""
    STOPPED = 5
    """The operator stopped the run, or a pipeline of it, before its end; `run --resume` continues it."""
    BUG = 70
    """A bug of ours; the log has the traceback."""
    NOT_CLEAN = 74
    """Something could not be cleaned up: a process that does not die, or GPU memory that stays held after its process is gone."""

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "every trainer ended by itself with exit code 0; the summary says how many of its steps each did",
    ExitCode.CONFIGURATION: "the configuration or the command line is wrong; nothing was started",
    ExitCode.SET_UP: "the machine could not give what the configuration asks for",
    ExitCode.PIPELINE_FAILED: "a pipeline failed for good; the summary says why, the others went on",
    ExitCode.STOPPED: "stopped by the operator before the end; `run --resume` continues",
    ExitCode.BUG: "a bug of ours; the log has the traceback",
    ExitCode.NOT_CLEAN: "something could not be cleaned up; the log names it",
}


class SupervisorError(Exception):
    """Somebody else than us is to blame. This program exits with `exit_code` when nobody handles the error."""

    exit_code: ClassVar[ExitCode]


class Mistake(msgspec.Struct, frozen=True):
    """A mistake is one thing that is wrong in a configuration file. `key` is a path such as `pipeline[1].engine.gpus` (positions count from 0);
    `place` says the same in words (`pipeline code: engine.gpus`), where they are better."""

    file: str
    key: str
    value: str
    problem: str
    remedy: str
    line: int | None = None
    place: str = ""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        key = self.place or self.key
        what = f"{key} = {self.value}" if self.value else key
        return f"{where}: {what}: {self.problem}. {self.remedy}" if what else f"{where}: {self.problem}. {self.remedy}"


class ConfigError(SupervisorError):
    """The operator's configuration is wrong; `mistakes` has everything that could be found in one reading."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        assert mistakes, "a ConfigError names what is wrong"
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class UsageError(SupervisorError):
    """The command asks for something that cannot be. Its text is one clear line."""

    exit_code = ExitCode.CONFIGURATION


class SetUpError(SupervisorError):
    """The machine refuses something before the run could begin.

    Where a key of the configuration asked for it, `key` (`host.gpus[1]`) and `value` say which; `remedy` says what to do, if that is known.
    """

    exit_code = ExitCode.SET_UP

    def __init__(self, problem: str, *, key: str = "", value: object = "", remedy: str = "") -> None:
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        where = f"{key} = {value}: " if key and value != "" else f"{key}: " if key else ""
        super().__init__(f"{where}{problem}" + (f". {remedy}" if remedy else ""))
