"""A command of the operator's (`[notify] command`) is told of failures, of recoveries and of the end; nothing that it does can hurt the run.

It gets one JSON object on its standard input, and the same as variables: `TRAINSHED_EVENT` (failure, recovery, end), `TRAINSHED_TEXT`,
`TRAINSHED_RUN`, `TRAINSHED_DIRECTORY`. One runs at a time; what it prints is in `logs/notify.log`.
"""

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio
import msgspec
from anyio import to_thread

from supervisor.host.processes.child import open_log
from supervisor.observe.sanitize import one_line
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event
from supervisor.scheduler.faults import Cause
from supervisor.scheduler.records import TrainerState
from trainers.protocol.ids import PipelineId

if TYPE_CHECKING:
    import structlog

LIMIT_S: Final = 30.0
"""How long one call may take; then it is killed."""
_MOST: Final = 32
"""Tidings that wait; the oldest are dropped, and that is logged."""
_LONGEST: Final = 1000


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What the command reads. `pipeline` is empty where the run as a whole is meant; `exit` is there at the end."""

    event: Literal["failure", "recovery", "end"]
    run: str
    directory: str
    text: str
    pipeline: str = ""
    exit: int | None = None


class Notifier:
    """Observes a run, and tells the command from a task of its own (`run`). `environment` is the command's."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        run: str,
        directory: Path,
        hide: Callable[[str], str],
        log: "structlog.typing.FilteringBoundLogger",
    ) -> None:
        self._command, self._environment, self._hide, self._log = list(command), dict(environment), hide, log
        self._run_id, self._directory = run, directory
        self._waiting: deque[Notice] = deque(maxlen=_MOST)
        self._came = anyio.Event()
        self._failed: set[PipelineId] = set()

    def observe(self, _event: Event, _actions: Sequence[Action], scheduler: Scheduler, _now: float) -> None:
        """Take in one event."""
        for level, about, what in scheduler.notes:
            if level == "error":
                pipeline = about if isinstance(about, str) else getattr(about, "pipeline", "")
                self._tell("failure", f"{about}: {what}" if about is not None else what, str(pipeline))
        for word, fault in scheduler.fault_changes:
            if fault.cause is not Cause.OPERATOR:
                kind: Literal["failure", "recovery"] = "failure" if word == "failed" else "recovery"
                text = f"{fault.engine}: engine group {word}" + (f": {fault.reason}" if word == "failed" else "")
                self._tell(kind, text, fault.engine.pipeline)
        for id, pipeline in scheduler.pipelines.items():
            state = pipeline.trainer.state
            if state is TrainerState.QUARANTINED and not pipeline.trainer.by_operator:
                self._failed.add(id)
            elif state is TrainerState.RUNNING and id in self._failed:
                self._failed.discard(id)
                self._tell("recovery", f"{pipeline.trainer.id}: runs again, after {pipeline.trainer.steps_done} steps", id)

    def _tell(self, event: Literal["failure", "recovery"], text: str, pipeline: str) -> None:
        if len(self._waiting) == _MOST:
            self._log.warning("a notification was dropped: the command is too slow", text=self._waiting[0].text)
        self._waiting.append(self._notice(event, text, pipeline))
        self._came.set()

    def _notice(self, event: Literal["failure", "recovery", "end"], text: str, pipeline: str = "", exit: int | None = None) -> Notice:
        shown = one_line(self._hide(text), _LONGEST)
        return Notice(event=event, run=self._run_id, directory=str(self._directory), text=shown, pipeline=pipeline, exit=exit)

    async def run(self) -> None:
        """Tell what comes, one after the other, until cancelled."""
        while True:
            await self._came.wait()
            self._came = anyio.Event()
            await self._tell_all()

    async def end(self, exit: int, text: str) -> None:
        """Tell what still waits, and the end."""
        await self._tell_all()
        await to_thread.run_sync(self._call, self._notice("end", text, exit=exit))

    async def _tell_all(self) -> None:
        while self._waiting:
            await to_thread.run_sync(self._call, self._waiting.popleft())

    def _call(self, notice: Notice) -> None:
        """Run the command once. In a thread: `subprocess` waits for this child alone."""
        said = {"EVENT": notice.event, "TEXT": notice.text, "RUN": notice.run, "DIRECTORY": notice.directory}
        environment = self._environment | {f"TRAINSHED_{name}": value for name, value in said.items()}
        try:
            output = open_log(self._directory / "logs" / "notify.log")
            try:
                done = subprocess.run(
                    self._command, input=msgspec.json.encode(notice) + b"\n", stdout=output, stderr=output, env=environment,
                    timeout=LIMIT_S, check=False, start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(output)
        except (OSError, subprocess.SubprocessError) as error:
            self._log.warning("[notify] command failed", why=str(error))
            return
        if done.returncode != 0:
            self._log.warning("[notify] command failed", code=done.returncode, output="logs/notify.log")
