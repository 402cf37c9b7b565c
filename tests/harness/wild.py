"""Children that say anything at any time: answers of every kind in any order, and messages that make no sense."""

from random import Random

import msgspec

from supervisor.scheduler import Scheduler
from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from tests.harness.boxes import box, pipeline
from tests.harness.checked_scheduler import well
from trainers.protocol import trainer_messages as say
from trainers.protocol.gateway_messages import EngineLoad, Progress, RolloutProgress
from trainers.protocol.ids import EngineId, GatewayId, GpuId, GroupId, Incarnation, PipelineId, TrainerId, Version

BOX = box(
    4, pipeline("p1", [0, 1], [0, 1, 2, 3], critic=[1, 2]), pipeline("p2", [2, 3], [0, 1, 2, 3], tp=2, critic=[3]), pipeline("p3", [0], [3], ranks=1)
)  # fmt: skip
ROLES = ("init", "train", "critic", "nonsense")


class Wild:
    """`play()` feeds so many events; the scheduler raises when it breaks one of its invariants."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.scheduler = Scheduler(BOX, 0.0)
        self.waiting: list[do.Action] = []
        self.past: list[ev.Event] = []

    def play(self, events: int) -> None:
        self.feed(ev.Tick())
        for _ in range(events):
            deadline = self.scheduler.deadline
            kind = self.random.choices(("answer", "said", "event", "wait", "again"), (60, 25, 6, 8, 3))[0]
            if kind == "answer" and self.waiting:
                action = self.waiting.pop(self.random.randrange(len(self.waiting)))
                self.feed(self._answer(action))
            elif kind == "said":
                self.feed(self._said())
            elif kind == "event":
                self.feed(self._event())
            elif kind == "wait" and deadline is not None:
                assert deadline > self.now, "it wants to be woken for ever"
                self.now = deadline
                self.feed(ev.Tick())
            elif kind == "again" and self.past:
                self.feed(self.random.choice(self.past))

    def feed(self, event: ev.Event) -> None:
        self.now += self.random.choice((0.0, 0.01, 1.0))
        self.waiting += self.scheduler.handle(event, self.now)
        self.past = [*self.past[-50:], event]
        known = {id(awaited.action) for awaited in self.scheduler.awaited}
        if self.random.random() < 0.8:
            self.waiting = [action for action in self.waiting if id(action) in known]

    def _life(self, group: GroupId) -> Incarnation:
        record = self.scheduler.pipelines[group.pipeline]
        match group:
            case EngineId(rank=rank):
                life = record.engines[rank].incarnation
            case TrainerId():
                life = record.trainer.incarnation
            case GatewayId():
                life = record.gateway.incarnation
        return Incarnation(life if self.random.random() < 0.9 else max(0, life + self.random.choice((-1, 1))))

    def _said(self) -> ev.Event:
        chance = self.random
        name = PipelineId(chance.choice(("p1", "p2", "p3")))
        record = self.scheduler.pipelines[name]
        trainer = record.trainer
        call = trainer.grant.call if trainer.grant is not None and chance.random() < 0.8 else chance.randint(0, 3)
        rollout = next(iter(record.rollouts), chance.randint(0, 3)) if chance.random() < 0.5 else chance.randint(0, 3)
        roles = tuple(chance.choices(ROLES, (10, 20, 20, 1), k=chance.choice((1, 1, 2))))
        message: say.TrainerMessage = chance.choice((
            say.OpenRollout(rollout, chance.randint(1, 60)), say.CloseRollout(rollout), say.RequestLease(call, roles), say.ExchangeLease(call, roles),
            say.Offloaded(call), say.Offloaded(call), say.Publish(call, "w"), say.Checkpoint(call, "/c"), say.Hello(0), say.Report(0, {"reward": 0.5}),
            say.OpenRollout(rollout, chance.randint(1, 9), per_rank=True, trajectories=chance.random() < 0.5), say.CloseRollout(rollout),
            say.Asked(rollout, chance.randint(0, 2), "aa"), say.EndTrajectories(rollout, chance.randint(0, 9)),
        ))  # fmt: skip
        if chance.random() < 0.3:
            return self._progress(name)
        rank = (
            chance.randrange(trainer.world_size)
            if isinstance(message, say.Offloaded | say.Asked) or getattr(message, "per_rank", False)
            else int(chance.random() < 0.02)
        )
        return ev.TrainerSaid(pipeline=name, incarnation=self._life(TrainerId(name)), rank=rank, message=message)

    def _progress(self, name: PipelineId) -> ev.Event:
        chance = self.random
        numbers = chance.sample(range(-2, 4), chance.randint(0, 3))
        rollouts = tuple(RolloutProgress(n, chance.randint(0, 40), chance.randint(0, 9), chance.randint(0, 40), n < 0) for n in numbers)
        loads = tuple(EngineLoad(rank, self._life(EngineId(name, 0)), 1, 1, 0) for rank in range(chance.randint(0, 5)))
        return ev.GatewaySaid(pipeline=name, incarnation=self._life(GatewayId(name)), progress=Progress(rollouts, loads))

    def _event(self) -> ev.Event:
        chance = self.random
        name = PipelineId(chance.choice(("p1", "p2", "p3")))
        rank = chance.choice(list(self.scheduler.pipelines[name].engines))
        group: GroupId = chance.choice((EngineId(name, rank), EngineId(name, rank), TrainerId(name), GatewayId(name)))
        life = self._life(group)
        match chance.choice(("exit", "exit", "peer", "probe", "operator")):
            case "exit":
                return ev.MemberExited(group=group, incarnation=life, member=chance.randint(-1, 1), code=chance.choice((0, 0, 1, -9)))
            case "peer":
                return ev.PeerFailed(group=group, incarnation=life, reason="wild")
            case "probe":
                return ev.ProbeFailed(group=group, incarnation=life, reason="wild")
        verb = chance.choice(("pause", "drain", "resume", "resume", "restart", "reset", "reset"))
        if chance.random() < 0.02:
            return ev.Stop(level=chance.randint(1, 3))
        return ev.OperatorAsked(verb=verb, pipeline=name, rank=chance.choice((None, rank)), part=chance.choice(("", "", "gateway")))

    def _answer(self, action: do.Action) -> ev.Event:
        """Any answer that the runtime could give."""
        chance = self.random
        bad = chance.random() < 0.05
        if bad and not isinstance(action, do.TellTrainer | do.DropSnapshot | do.StopGroup):
            return ev.ActionFailed(id=action.id, reason="wild")
        match well(action):
            case ev.GroupGone() as gone:
                return msgspec.structs.replace(gone, confirmed=not bad)
            case ev.GpuFree() if isinstance(action, do.Measure) and chance.random() < 0.05:
                return ev.GpuHeld(id=action.id, gpus=action.gpus[:1] or (GpuId(0),), note="wild")
            case ev.Woken(version=version) as woken if chance.random() < 0.03:
                return msgspec.structs.replace(woken, version=Version(version + chance.choice((-1, 1))))
            case ev.Ordered() as ordered if chance.random() < 0.03:
                return msgspec.structs.replace(ordered, error="wild")
            case answer:
                return answer
