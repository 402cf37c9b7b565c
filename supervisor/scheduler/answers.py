"""What a trainer is told, and how long it waited for it."""

from trainers.protocol.trainer_messages import SupervisorMessage

from .actions import TellTrainer
from .context import Desk
from .records import Pipeline

STOPPING = ("stopping", "the supervisor is stopping; `run --resume` goes on from the last checkpoint")
"""Code and reason of what is refused then."""


def tell(desk: Desk, pipeline: Pipeline, message: SupervisorMessage) -> None:
    """One message to every rank of this life."""
    incarnation = pipeline.trainer.incarnation
    desk.do(lambda id: TellTrainer(id=id, pipeline=pipeline.id, incarnation=incarnation, message=message), desk.box.limits.order)


def waited(desk: Desk, pipeline: Pipeline, what: str) -> None:
    """The trainer's wait for this is over: count the seconds."""
    since = pipeline.figures.waits_since.pop(what, None)
    if since is not None:
        pipeline.figures.waited += desk.now - since
