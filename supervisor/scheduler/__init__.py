"""The scheduler decides everything: who may hold which GPU, which engine is awake, what a trainer is told, what is started, stopped, restarted.

It is pure: events and the time go in, actions come out. It imports no clock, chance, I/O or process, and knows GPUs only by number; of the rest
of the project it knows ids and messages (`trainers.protocol`) and the table of an engine's states (`engines.lifecycle.state`). So every decision
can be simulated, replayed bit by bit from a recording, and explained.

    scheduler = Scheduler(box, now=0.0)
    actions = scheduler.handle(TrainerSaid(..., message=OpenRollout(...)), now=12.5)   # e.g. [Wake(id=7, engine=..., version=3)]
    scheduler.handle(Woken(id=7, version=3), now=14.0)                                 # each action is answered once, by its id
    scheduler.explain(pipeline)                                                        # why it has what it has, and no more

One call of `handle` does three things, in this order:
 1. It absorbs the event: an answer goes to the group that its action is about, a message to the trainer, a report to the gateway.
 2. Actions whose deadline has come are answered as failed; so nothing is waited for longer than its limit.
 3. It settles: every trainer and gateway takes its next step, lease requests that come next are granted, the planner says which engines
    should be awake, every engine takes its next step, and the invariants are checked.
What is under way is recorded (`op` of each group, `inflight`); a second look at an unchanged state emits nothing.

Parts, each may import those to its right in a line and all of the lines below:
    scheduler                   the loop, and the face that others read. Nobody outside touches the context
    operators                   what an operator asks for
    planner_view                the planner's view of the records, and the reasons of the last plan
    groups/                     one life each: engines (and their teardown), trainers (their leases, rollouts, stop), gateways
    invariants, context         what must hold after every event; what every rule gets as `ctx`
    records                     engines, trainers, gateways, pipelines; below them engine_life, faults, restarts, rollouts,
                                planning/{planner, packing, costs, reservations, reasons}
    inflight, leases            actions that are not answered yet; who holds which GPU, and which are fenced or withheld
    events, actions, spec       what comes in, what goes out, and the box: plain data, and a file format (recordings)
"""

from .scheduler import Scheduler

__all__ = ["Scheduler"]
