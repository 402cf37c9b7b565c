"""These commands ask something of a running supervisor: stop, restart, pause, drain, resume, reset."""

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from supervisor.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from supervisor.observe.control_socket import Reply, Request, Verb

Group = Annotated[str, Parameter(help="p1, p1/engine/0, p1/trainer or p1/gateway.")]
Engines = Annotated[str, Parameter(help="p1 or p1/engine/0.")]
RunOption = Annotated[
    str | None, Parameter("--run", help="A run's directory, its name, or name/attempt_N. Default: the one that goes on here.")
]


def stop(
    target: Annotated[str | None, Parameter(help="A pipeline: p1. Default: the whole run.")] = None,
    /,
    *,
    run: RunOption = None,
    now: Annotated[bool, Parameter("--now", negative="", help="Do not wait for running samples.")] = False,
    kill: Annotated[bool, Parameter("--kill", negative="", help="Kill everything of the run.")] = False,
) -> int:
    """Stop a run gracefully, or one pipeline of it (stop p1)."""
    from supervisor.observe.control_socket import StopRequest

    if target is not None:
        if now or kill:
            raise UsageError("--now and --kill are for a whole run; without a target.")
        return _act("stop", target, run)
    return _ask(run, StopRequest(3 if kill else 2 if now else 1))


def restart(target: Group, /, *, run: RunOption = None) -> int:
    """Restart a pipeline's group: restart p1/engine/0, p1/trainer, p1/gateway or p1."""
    return _act("restart", target, run)


def pause(target: Engines, /, *, run: RunOption = None) -> int:
    """Take an engine or a pipeline off the GPUs until `resume`."""
    return _act("pause", target, run)


def drain(target: Engines, /, *, run: RunOption = None) -> int:
    """Like `pause`, and then end the engine's processes: nothing of it is left on its GPUs until `resume`."""
    return _act("drain", target, run)


def resume(target: Engines, /, *, run: RunOption = None) -> int:
    """Undo `pause` and `drain`. (To go on with a stopped run: run FILE --resume.)"""
    return _act("resume", target, run)


def reset(target: Group, /, *, run: RunOption = None) -> int:
    """Give a retired engine or a failed pipeline a new restart budget."""
    return _act("reset", target, run)


def _act(verb: "Verb", target: str, run: str | None) -> int:
    from supervisor.observe.control_socket import ActRequest, parse_target

    return _ask(run, ActRequest(verb, parse_target(target)))


def _ask(run: str | None, request: "Request") -> int:
    from supervisor.attempt.find import display_path, find_run
    from supervisor.observe.control_socket import NotRunning, ask

    attempt = find_run(run, acting=True)
    try:
        return report(ask(attempt / "control.sock", request), display_path(attempt))
    except NotRunning as error:
        from supervisor.attempt.post_mortem import post_mortem
        from supervisor.attempt.summary import Summary

        end = post_mortem(attempt)
        text = f"{attempt}: this run has ended already (exit {end.exit})." if isinstance(end, Summary) else str(end)
        raise UsageError(text) from error


def report(reply: "Reply", run: str) -> int:
    """Print a reply of that run, by its name; return the exit code. Raises UsageError when the supervisor declined."""
    from supervisor.observe.control_socket import Declined, Done
    from supervisor.observe.sanitize import one_line

    if isinstance(reply, Declined):
        raise UsageError(f"{run}: {one_line(reply.text)}")
    if isinstance(reply, Done):
        for line in (reply.text or "Done.").split("\n"):
            sys.stdout.write(f"{run}: {one_line(line)}\n")
        sys.stdout.flush()
    return int(ExitCode.DONE)
