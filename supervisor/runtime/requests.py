"""An operator's request to one pipeline or group: the scheduler is told, and the operator what it will do."""

from collections.abc import Callable

from supervisor.errors import UsageError
from supervisor.observe.control_socket import ActRequest, Done
from supervisor.scheduler.context import Context
from supervisor.scheduler.events import Event, OperatorAsked
from supervisor.scheduler.operators import preview, refusal
from trainers.protocol.ids import EngineId, GatewayId, TrainerId


def act(ctx: Context, feed: Callable[[Event], None], request: ActRequest) -> Done:
    """One line for each group that it concerns. Raises UsageError: nothing of that name, or not for such a verb."""
    target = request.target
    rank = target.rank if isinstance(target, EngineId) else None
    part = "gateway" if isinstance(target, GatewayId) else "trainer" if isinstance(target, TrainerId) else ""
    asked = OperatorAsked(verb=request.verb, pipeline=target.pipeline, rank=rank, part=part)
    if (why := refusal(ctx, asked)) != "":
        raise UsageError(f"{why}.")
    told = "\n".join(f"{about}: {what}" for about, what in preview(ctx, asked))  # before it is done, so that it says what was
    feed(asked)
    return Done(told)
