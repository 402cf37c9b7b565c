"""Chaos is what happens by itself in the simulated world: deaths, verdicts (also about the dead), and operators."""

from typing import Literal, assert_never, get_args

from supervisor.scheduler import events as ev
from trainers.protocol.ids import EngineId, Incarnation

from .world import World

Wish = Literal["pause", "drain", "restart", "reset", "suspend", "restart trainer", "restart gateway"]
WISHES: tuple[Wish, ...] = get_args(Wish)


def begin(world: World) -> None:
    if world.faults.alone > 0.0:
        _again(world, world.faults.alone, operator=False)
    if world.faults.operator > 0.0:
        _again(world, world.faults.operator, operator=True)
    if world.strikes(world.faults.stop):
        world.after(world.random.uniform(1.0, 150.0), lambda: _stop(world))


def _stop(world: World) -> None:
    """Stop one pipeline, or everything with growing impatience."""
    chance = world.random
    if chance.random() < 0.5:
        pipeline = chance.choice([spec.id for spec in world.box.pipelines])
        world.stopped.add(pipeline)
        world.feed(ev.OperatorAsked(verb="stop", pipeline=pipeline))
        return
    for level in range(1, chance.randint(1, 3) + 1):
        world.after((level - 1) * 3.0, lambda level=level: world.feed(ev.Stop(level=level)))  # type: ignore[misc]


def _again(world: World, mean: float, *, operator: bool) -> None:
    def happen() -> None:
        if world.faulty:
            if operator:
                _ask(world)
            else:
                _strike(world)
            _again(world, mean, operator=operator)

    world.after(world.random.expovariate(1.0 / mean), happen)


def _strike(world: World) -> None:
    """Strike a group: a death, or a verdict about this life or one before it."""
    chance = world.random
    group = chance.choice(sorted(world.alive, key=str)) if world.alive else None
    if group is None:
        return
    life = world.alive[group]
    what = chance.choice(("dies", "dies", "peer", "probe", "late exit", "late verdict"))
    before = Incarnation(life - chance.randint(1, 2))
    match what:
        case "dies":
            world.die(group, chance.choice((-9, 1)))
        case "peer":
            world.feed(ev.PeerFailed(group=group, incarnation=life, reason="its descriptor is closed"))
        case "probe" if isinstance(group, EngineId):
            world.feed(ev.ProbeFailed(group=group, incarnation=life, reason="silent", silent_for=30.0))
        case "late exit":
            world.feed(ev.MemberExited(group=group, incarnation=before, member=0, code=-9))
        case _:
            world.feed(ev.PeerFailed(group=group, incarnation=before, reason="late"))


def _ask(world: World) -> None:
    """Ask as an operator would; what is paused is resumed after a while."""
    chance = world.random
    pipeline = chance.choice([spec.id for spec in world.box.pipelines])
    rank = chance.choice(list(world.scheduler.pipelines[pipeline].engines))
    verb = chance.choice(WISHES)
    match verb:
        case "suspend":
            world.feed(ev.OperatorAsked(verb="pause", pipeline=pipeline))
        case "restart trainer":
            world.feed(ev.OperatorAsked(verb="restart", pipeline=pipeline, part="trainer"))
        case "restart gateway":
            world.feed(ev.OperatorAsked(verb="restart", pipeline=pipeline, part="gateway"))
        case "reset":
            world.feed(ev.OperatorAsked(verb="reset", pipeline=pipeline))
        case "pause" | "drain" | "restart":
            world.feed(ev.OperatorAsked(verb=verb, pipeline=pipeline, rank=rank))
        case _:
            assert_never(verb)
    if verb in ("pause", "drain", "suspend"):
        one = None if verb == "suspend" else rank
        resume = ev.OperatorAsked(verb="resume", pipeline=pipeline, rank=one)
        world.after(chance.uniform(1.0, 60.0), lambda: world.feed(resume))
