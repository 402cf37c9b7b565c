"""Carries out what the scheduler decides: each action becomes one event, whatever happens on the way."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, assert_never

import msgspec

from engines.control import EngineError
from supervisor.host.ports import NoPortFree
from supervisor.host.processes.child import SpawnFailed
from supervisor.observe.sanitize import plain
from supervisor.runtime.driver import Work
from supervisor.runtime.engines import Engines
from supervisor.runtime.gateways import Gateways
from supervisor.runtime.gpu_memory import GpuMemory
from supervisor.runtime.group_lifecycle import GroupLifecycle
from supervisor.runtime.model_recipe import Models
from supervisor.runtime.ranks import Ranks
from supervisor.runtime.snapshots import TrainerOutput
from supervisor.scheduler import actions as do
from supervisor.scheduler.events import ActionFailed, Event

CHILDS_FAULT = (SpawnFailed, NoPortFree, EngineError, OSError, TimeoutError)
"""What an action may fail with. Anything else is a bug of ours and ends the supervisor."""
CHILDS_WORDS_FAULT = (*CHILDS_FAULT, ValueError, OverflowError, RecursionError, MemoryError)
"""What an action may fail with that works on what a child has said or left: a path may hold a NUL, a file may be nested or large beyond reason."""
AnAction = TypeVar("AnAction", bound=do.Action)


@dataclass(frozen=True, slots=True)
class Performer:
    """The table of actions: who performs which. `begin` is called in the order of the decisions and never waits."""

    feed: Callable[[Event], None]
    lifecycle: GroupLifecycle
    engines: Engines
    ranks: Ranks
    gateways: Gateways
    models: Models
    memory: GpuMemory
    output: TrainerOutput

    def begin(self, action: do.Action) -> Work | None:  # noqa: C901 - a table, a row for each kind of action
        """Returns what is still to be done, or None when the answer has been fed or will come from a child's descriptor."""
        match action:
            case do.PrepareModel():
                return self._later(self.models.prepare, action, CHILDS_WORDS_FAULT)
            case do.StartGroup():
                return self._later(self.engines.start, action)
            case do.StartTrainer():
                return self._later(self.ranks.start, action)
            case do.StartGateway():
                return self._later(self.gateways.start, action)
            case do.StopGroup():
                return self._later(self.lifecycle.end, action)
            case do.Measure():
                return self._later(self.memory.measure, action)
            case do.Pause():
                return self._later(self.engines.pause, action)
            case do.Wake():
                return self._later(self.engines.wake, action)
            case do.LoadWeights():
                return self._later(self.engines.load, action)
            case do.AdoptSnapshot():
                return self._later(self.output.adopt, action, CHILDS_WORDS_FAULT)
            case do.DropSnapshot():
                return self._later(self.output.drop, action)
            case do.RecordCheckpoint():
                return self._later(self.output.record, action, CHILDS_WORDS_FAULT)
            case do.TellTrainer():
                return self._now(self.ranks.tell(action))
            case do.Route():
                return self._now(self.gateways.route(action, self.engines.endpoint(action.engine)))
            case do.Unroute() | do.Drain() | do.Lost():
                return self._now(self.gateways.order(action))
            case do.OpenAtGateway() | do.CloseAtGateway() | do.ForgetAtGateway() | do.TellHopeless():
                return self._now(self.gateways.order(action))
            case _:
                assert_never(action)

    def _now(self, answer: Event | None) -> Work | None:
        if answer is not None:
            self.feed(answer)
        return None

    def _later(
        self,
        perform: Callable[[AnAction], Awaitable[Event]],
        action: AnAction,
        faults: tuple[type[Exception], ...] = CHILDS_FAULT,
    ) -> Work:
        """Returns the work of an action. One of the `faults` is its failure; why it failed becomes text that can be recorded, told and shown."""

        async def work() -> Event:
            try:
                answer = await perform(action)
            except faults as error:
                answer = ActionFailed(id=action.id, reason=str(error) or type(error).__name__)
            return msgspec.structs.replace(answer, reason=plain(answer.reason)) if isinstance(answer, ActionFailed) else answer

        return work
