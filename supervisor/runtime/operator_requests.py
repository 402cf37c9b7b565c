"""An operator asks a running supervisor by signals, and by requests over the control socket; both are answered here."""

import signal
import time
from dataclasses import dataclass

import anyio
import anyio.abc

from supervisor.attempt.outcome import stopped_by
from supervisor.attempt.resume import EarlierStarts, merge_earlier
from supervisor.errors import UsageError
from supervisor.host.regular_file import user_name
from supervisor.observe.control_socket import (
    ActRequest,
    Done,
    ExplainReply,
    ExplainRequest,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    StopRequest,
)
from supervisor.observe.explanation import explained
from supervisor.observe.status import Status
from supervisor.observe.status_builder import Constants, build_status
from supervisor.runtime.driver import Loop
from supervisor.runtime.gpu_memory import GpuMemory
from supervisor.scheduler import Scheduler
from supervisor.scheduler.events import OperatorAsked, Part, Stop
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId


class StatusSource:
    """Makes the state of the run as people see it, over all starts of the attempt."""

    def __init__(self, constants: Constants, scheduler: Scheduler, memory: GpuMemory, before: EarlierStarts) -> None:
        self._constants, self._scheduler, self._memory, self._before = constants, scheduler, memory, before
        self._began = time.monotonic()

    def now(self) -> Status:
        """Returns the state, with the use of memory where it has been measured in this moment."""
        uptime = time.monotonic() - self._began
        return merge_earlier(self._before, build_status(self._constants, self._scheduler, self._memory.seen, uptime_s=uptime))

    async def measured(self) -> Status:
        """Measures first what is used."""
        await self._memory.look_on()
        return self.now()


OPERATOR = "operator"
_HOW = {1: "gracefully", 2: "without waiting", 3: "by killing"}


class Stopper:
    """Stops the run: 1 gracefully, 2 without draining, 3 kill. No request makes a stop gentler than it is."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._level = 0

    def stop(self, level: int, why: str, uid: int | None = None) -> None:
        """`why` is the name of a signal, or OPERATOR: then `uid` is whose process asked."""
        self._level = min(max(level, self._level), 3)
        self._loop.log.warning(f"stopping {_HOW[self._level]}", why=stopped_by(why, uid))
        self._loop.feed(Stop(level=self._level, why=why, uid=uid))

    async def on_signals(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Takes every signal for a request one level above the last, until cancelled."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                self.stop(self._level + 1, signal.Signals(number).name)


@dataclass(frozen=True, slots=True)
class OperatorRequests:
    """Answers the control socket."""

    scheduler: Scheduler
    loop: Loop
    stopper: Stopper
    status: StatusSource

    async def answer(self, request: Request, uid: int) -> Reply:
        """Answers a process of the user `uid`. Raises UsageError: nothing has that name, or it is not for such a verb."""
        match request:
            case StatusRequest():
                return StatusReply(await self.status.measured())
            case StopRequest(level=level):
                self.stopper.stop(level, OPERATOR, uid)
                return Done("stopping")
            case ExplainRequest(pipeline=pipeline):
                return self._explain(pipeline)
            case ActRequest():
                return self._act(request, uid)

    def _explain(self, pipeline: PipelineId) -> ExplainReply:
        if pipeline not in self.scheduler.pipelines:
            raise UsageError(f"There is no pipeline {pipeline!r} in this run; it has {', '.join(sorted(self.scheduler.pipelines))}.")
        return ExplainReply(explained(self.scheduler.explain(pipeline)))

    def _act(self, request: ActRequest, uid: int) -> Done:
        """Tells the scheduler, and the operator what it will do: one line for each group that it concerns."""
        target = request.target
        rank = target.rank if isinstance(target, EngineId) else None
        part: Part = "gateway" if isinstance(target, GatewayId) else "trainer" if isinstance(target, TrainerId) else ""
        asked = OperatorAsked(verb=request.verb, pipeline=target.pipeline, rank=rank, part=part, uid=uid)
        if (why := self.scheduler.refusal(asked)) != "":
            raise UsageError(f"{why}.")
        lines = [f"{about}: {what}" for about, what in self.scheduler.preview(asked)]  # before it is done, so that it says what was
        self.loop.log.info("an operator asks", verb=request.verb, target=str(target), user=user_name(uid))
        self.loop.feed(asked)
        return Done("\n".join(lines))
