"""These commands look at runs and change nothing: `status` at one of them, `why` at the engines of a pipeline, `ps` at every run of this box."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from supervisor.cli import operate, streams
from supervisor.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from supervisor.attempt.box_runs import BoxRun
    from supervisor.attempt.find import Foreign
    from supervisor.observe.status import Status

_PATIENCE_S: Final = 2.0
"""How long `ps` waits for one run's answer."""


def status(
    *names: Annotated[
        str, Parameter(help="A run (its directory, name, or name/attempt_N), a pipeline of it, or both. Default: the latest here.")
    ],
    json: streams.Json = False,
) -> int:
    """Show a run: its pipelines, processes and GPUs, and what waits for what. status [RUN] [p1]."""
    from supervisor.attempt.find import Foreign
    from supervisor.observe import control_socket

    try:
        attempt, pipeline = _run_and_pipeline(names)
    except Foreign as foreign:
        return _belongs(foreign, json)
    with streams.lasting():
        try:
            reply = control_socket.ask(attempt / "control.sock", control_socket.StatusRequest())
        except control_socket.NotRunning:
            return _ended(attempt, json)
        if not isinstance(reply, control_socket.StatusReply):
            return operate.report(reply, str(attempt))
        snapshot = _only(reply.snapshot, pipeline)
        if json:
            streams.say_json(snapshot)
            return int(ExitCode.DONE)
        from supervisor.views import status as view

        view.show(snapshot)
        if not names:
            _others(attempt)
    return int(ExitCode.DONE)


def why(pipeline: Annotated[str, Parameter(help="p1")], /, *, run: operate.RunOption = None, json: streams.Json = False) -> int:
    """Say why a pipeline has the engines that it has now, and why it was not given more."""
    from supervisor.attempt.find import find_run
    from supervisor.observe import control_socket
    from supervisor.views.status import show_why
    from trainers.protocol.ids import PipelineId

    attempt = find_run(run)
    reply = control_socket.ask(attempt / "control.sock", control_socket.ExplainRequest(PipelineId(pipeline)))
    if not isinstance(reply, control_socket.ExplainReply):
        return operate.report(reply, str(attempt))
    with streams.lasting():
        if json:
            streams.say_json(reply.explanation)
        else:
            show_why(reply.explanation)
    return int(ExitCode.DONE)


def ps(*, json: streams.Json = False) -> int:
    """List the runs of this box, of all users: whose, since when, on which GPUs, how far, and how to reach them."""
    from supervisor.attempt.box_runs import box_runs

    runs = box_runs()
    steps = {run.directory: told for run in runs if run.ours and (told := _progress(run)) is not None}
    if json:
        import msgspec

        streams.say_json([{**msgspec.to_builtins(run), "steps": steps.get(run.directory)} for run in runs])
    elif not runs:
        streams.say("No run goes on on this box.")
    else:
        from supervisor.views import ps as view

        view.show(runs, steps, time.time())
    return int(ExitCode.DONE)


def _progress(run: "BoxRun") -> str | None:
    """Ask a run of ours how far it is; None when it does not say so at once."""
    from supervisor.observe.control_socket import StatusReply, StatusRequest, ask
    from supervisor.views.ps import progress

    try:
        reply = ask(Path(run.directory) / "control.sock", StatusRequest(), _PATIENCE_S)
    except UsageError:
        return None
    return progress(reply.snapshot) if isinstance(reply, StatusReply) else None


def _run_and_pipeline(names: Sequence[str]) -> tuple[Path, str | None]:
    """Read `RUN PIPELINE`, or one of them: what names no run may be a pipeline of the latest. Raises UsageError, Foreign."""
    from supervisor.attempt.find import Foreign, find_run

    if len(names) > 2:
        raise UsageError("status takes a run and a pipeline at most: status [RUN] [p1].")
    if len(names) != 1:
        return find_run(names[0] if names else None), names[1] if names else None
    try:
        return find_run(names[0]), None
    except Foreign:
        raise
    except UsageError as no_run:
        from supervisor.views.log_sources import parts_of

        try:
            latest = find_run(None)
        except UsageError:
            raise no_run from None
        if names[0] not in (parts := parts_of(latest)):
            raise UsageError(f"{no_run} Nor has the latest run a pipeline of that name: {', '.join(parts) or 'none is known'}.") from None
        return latest, names[0]


def _only(snapshot: "Status", pipeline: str | None) -> "Status":
    """Return a status of one pipeline, with the GPUs of all. Raises UsageError."""
    import msgspec

    if pipeline is None:
        return snapshot
    found = tuple(view for view in snapshot.pipelines if view.name == pipeline)
    if not found:
        raise UsageError(f"There is no pipeline {pipeline}; there are: {', '.join(view.name for view in snapshot.pipelines)}.")
    return msgspec.structs.replace(snapshot, pipelines=found)


def _belongs(foreign: "Foreign", json: bool) -> int:
    """Say whose a run is that is not ours to look into: that is an answer, and no mistake."""
    if json:
        streams.say_json({"belongs": str(foreign), "runs": foreign.runs})
    elif foreign.runs:
        from supervisor.views import ps as view

        streams.note(str(foreign).partition(":")[0].partition(". Elsewhere")[0] + ".")
        view.show(foreign.runs, {}, time.time())
    else:
        streams.say(str(foreign))
    return int(ExitCode.DONE)


def _others(shown: Path) -> None:
    """Say that other runs of ours go on here, too."""
    from supervisor.attempt.find import display_path, running_below

    others = [display_path(path) for path in running_below(shown.parent.parent) if path.resolve() != shown.resolve()]
    if others:
        streams.note(f"{display_path(shown)} was shown; {', '.join(others)} also {'goes' if len(others) == 1 else 'go'} on here.")


def _ended(attempt: Path, json: bool) -> int:
    """Say how a run stands that nobody answers for."""
    from supervisor.attempt.post_mortem import post_mortem
    from supervisor.attempt.summary import Summary
    from supervisor.views.summary import show

    end = post_mortem(attempt)
    if json:
        streams.say_json(end)
    elif isinstance(end, Summary):
        show(end, str(attempt))
    else:
        streams.say(str(end))
    return int(ExitCode.DONE)
