"""An operator's request to one pipeline or group: the scheduler is told, and the operator what it will do."""

from collections.abc import Callable

from supervisor.errors import UsageError
from supervisor.observe.control_socket import ActRequest, Done
from supervisor.scheduler import Scheduler
from supervisor.scheduler.events import Event, OperatorAsked
from trainers.protocol.ids import EngineId, GatewayId, TrainerId


def act(scheduler: Scheduler, feed: Callable[[Event], None], request: ActRequest) -> Done:
    """One line for each group that it concerns. Raises UsageError: nothing of that name, or not for such a verb."""
    target = request.target
    rank = target.rank if isinstance(target, EngineId) else None
    part = "gateway" if isinstance(target, GatewayId) else "trainer" if isinstance(target, TrainerId) else ""
    asked = OperatorAsked(verb=request.verb, pipeline=target.pipeline, rank=rank, part=part)
    if (why := scheduler.refusal(asked)) != "":
        raise UsageError(f"{why}.")
    told = "\n".join(f"{about}: {what}" for about, what in scheduler.preview(asked))  # before it is done, so that it says what was
    feed(asked)
    return Done(told)
