"""A group is a set of processes that live and end together: an engine, a trainer (all ranks) or a gateway. This room runs their lives.

Every module works on the context (`ctx`) and the records, and emits actions. It decides what happens to one group when it is wanted, answers,
fails or ends; it does not decide who is wanted (`planning`). It never waits: a group has at most one action under way, `op`, and `step` returns
at once while there is one.

    engines           an engine from cold to serving, and to sleep         trainers            a trainer's messages and life
    engine_teardown   the end of its life, until all is confirmed          trainer_leases      GPUs asked for, granted, exchanged, left
    lease_violations  memory on a GPU without a lease                      rollout_requests    rollouts opened, refused, closed
    gateways          a gateway and the orders that it is given            trainer_stop        a trainer in the grace of a stop
    publishes         a trainer's weights, from snapshot to version

The modules of the three kinds have the same functions: `answered` takes the answer to an action, `fail` condemns the group, `stop` ends it as
planned, `step` looks at the record and starts the next action. Trainers call gateways never, gateways call trainers when they give up.

The life of an engine, as the calls that move it:
 1. `engines.step(wanted=True)`: the GPUs are free, so they are leased and `StartGroup` (cold) or `Wake` (asleep) is emitted.
 2. `engines.answered(GroupReady | Woken)`: the version that it truly has decides: the published one is routed, another is loaded first.
 3. `engines.step(leave=True)`: `Drain`, `Pause`, then `Measure`; only a GPU that measures empty gives its lease back.
 4. `engines.fail`: the fault is opened, the record of a teardown begins. `engine_teardown`: `Lost` to the gateway, `StopGroup`, `Measure`, and
    the next life with a new incarnation; or *stuck*, with its GPUs withheld, when it is not confirmed.
An answer that belongs to an earlier life finds no action waiting for it and is dropped by `inflight`.
"""
