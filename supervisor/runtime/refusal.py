"""Why a run could not begin, as one line for people, out of whatever task groups have wrapped around it."""

from collections.abc import Iterator

from supervisor.attempt.directory import RunDirectory
from supervisor.errors import SetUpError, SupervisorError, UsageError
from supervisor.host import disk
from supervisor.host.processes.child import SpawnFailed


def refusal(error: Exception, directory: RunDirectory) -> SupervisorError | None:
    """What the machine or the operator is to blame for; None: it is a bug of ours."""
    for leaf in _leaves(error):
        if isinstance(leaf, SetUpError | UsageError):
            return leaf
        if isinstance(leaf, OSError | SpawnFailed) and not directory.begun:
            why = disk.reason(leaf, directory.path) if isinstance(leaf, OSError) else ""
            return SetUpError(f"the run cannot begin: {why or leaf}.")
    return None


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
