"""Whose fault it is, as types, and the exit codes that say it to a shell.

Three kinds of blame: the operator's configuration or command (`ConfigError`, `UsageError`, `SetUpError`), a child's failure
(`ChildError`), and our own bug (`Bug`, or any exception that is none of these).
"""

from collections.abc import Sequence
from enum import IntEnum

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
    """What this program raises on purpose; `exit_code` is what it ends with when nobody handles it."""

    exit_code = ExitCode.BUG


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong in a configuration file. `key` is a path such as `pipeline[1].engine.gpus` (positions count from 0);
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
    """The operator's configuration is wrong; `mistakes` are all that could be found in one reading."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        assert mistakes, "a ConfigError names what is wrong"
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class UsageError(SupervisorError):
    """The command asks for what cannot be: one clear line, exit 2."""

    exit_code = ExitCode.CONFIGURATION


class SetUpError(SupervisorError):
    """The machine refused something before the run could begin."""

    exit_code = ExitCode.SET_UP


class ChildError(SupervisorError):
    """A child failed for good. `who` is the group's name (`p1/engine/0`)."""

    exit_code = ExitCode.PIPELINE_FAILED

    def __init__(self, who: str, reason: str) -> None:
        self.who = who
        self.reason = reason
        super().__init__(f"{who}: {reason}")


class Bug(SupervisorError):
    """Something that cannot happen has happened."""

    exit_code = ExitCode.BUG
