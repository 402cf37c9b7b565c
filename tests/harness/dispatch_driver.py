"""The gateway's dispatch core in the hands of a test: a clock, orders and requests, and all that the core has asked for. No sockets."""

from array import array
from dataclasses import dataclass, field
from typing import Any

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.events import Abort, Ask, Cut, Deliver, Ended, Event, Finished, Grew, Start, Tokens
from engines.gateway.core.samples import TOKENS, Answer, Failure, Mark, Outcome, Request, Span
from trainers.protocol import gateway_messages
from trainers.protocol.gateway_messages import Done

ABORTED = Finished({"type": "abort", "message": "Aborted"})


def request(prompt: int = 1, limit: int = 4, **more: Any) -> Request:
    return Request(array(TOKENS, [prompt]), {}, limit, fingerprint=hash((prompt, limit)), **more)


def span(engine: int, incarnation: int, version: int, start: int, end: int) -> Span:
    return Span(engine=engine, incarnation=incarnation, version=version, start=start, end=end)


@dataclass
class DispatchDriver:
    """A core with a clock, and what it has asked for."""

    core: Dispatch = field(default_factory=Dispatch)
    now: float = 0.0
    orders: int = 0
    askers: int = 0
    running: dict[int, Start] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    grown: dict[int, list[int]] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        for effect in self.core.handle(event, self.now):
            match effect:
                case Start():
                    self.running[effect.attempt] = effect
                case Abort(number):
                    self.aborted.append(number)
                case Cut(number):
                    del self.running[number]
                case Deliver(asker, outcome):
                    assert asker not in self.outcomes, "two outcomes for one asker"
                    self.outcomes[asker] = outcome
                case Grew(asker, ids, _):
                    self.grown.setdefault(asker, []).extend(ids)
                case Done(order):
                    assert order not in self.done, "an order answered twice"
                    self.done.append(order)

    def order(self, kind: type, **fields: Any) -> int:
        self.orders += 1
        self.tell(kind(order=self.orders, **fields))
        return self.orders

    def route(self, engine: int = 0, incarnation: int = 1, slots: int = 2, version: int = 0) -> int:
        return self.order(gateway_messages.Route, engine=engine, incarnation=incarnation, url="u", key="k", slots=slots, version=version)

    def drain(self, engine: int = 0, incarnation: int = 1) -> int:
        return self.order(gateway_messages.Drain, engine=engine, incarnation=incarnation)

    def lost(self, engine: int = 0, incarnation: int = 1) -> int:
        return self.order(gateway_messages.Lost, engine=engine, incarnation=incarnation)

    def open(self, rollout: int = 0, target: int = 8) -> int:
        return self.order(gateway_messages.OpenRollout, rollout=rollout, target=target)

    def close(self, rollout: int = 0) -> int:
        return self.order(gateway_messages.CloseRollout, rollout=rollout)

    def ask(self, rollout: int | None = None, token: str | None = None, *, wants: Request | None = None, streams: bool = False) -> int:
        self.askers += 1
        self.tell(Ask(asker=self.askers, rollout=rollout, token=token, request=wants or request(), streams=streams))
        return self.askers

    def make(self, attempt: int, *ids: int, label: str = "") -> None:
        marks = (Mark(label, 0, len(ids)),) if label else ()
        self.tell(Tokens(attempt, list(ids), [-0.5] * len(ids), marks=marks))

    def end(self, attempt: int, how: Any = None) -> None:
        self.running.pop(attempt, None)
        self.tell(Ended(attempt, how or Finished({"type": "length", "length": 4})))

    def only(self) -> int:
        (attempt,) = self.running
        return attempt

    def answer(self, asker: int) -> Answer:
        outcome = self.outcomes[asker]
        assert isinstance(outcome, Answer)
        return outcome

    def failure(self, asker: int) -> Failure:
        outcome = self.outcomes[asker]
        assert isinstance(outcome, Failure)
        return outcome

    def progress(self) -> dict[int, tuple[int, int, int]]:
        return {r.rollout: (r.waiting, r.in_flight, r.done) for r in self.core.progress().rollouts}
