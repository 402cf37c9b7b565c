"""Policies on workloads: how long would these jobs take on this box under that policy?

This is one of two simulators. It has time and work, and no faults; the other (`simulate.faults`) breaks things and checks promises, and neither
imports the other. Nothing here starts a process or reads a clock: time is virtual, and the same input gives the same figures.

    scenario.py    a workload: who trains where, for how long, and how much work each sample is; a bound that no policy can beat
    guess.py       a scenario made of a user's own configuration and guessed durations
    measured.py    a scenario made of what a run has measured; what its work would have cost alone and in turn
    box.py         the physics: GPUs, engines that take time to sleep and to wake, samples, trainings; it decides nothing
    production.py  the production scheduler as a policy
    incumbent.py   the incumbent's rules as a policy
    alone.py       policies that do not share: alone, one after another, the box cut in two
    compare.py     runs a scenario under a policy, and works out the figures

It may know the scheduler, the history of a run, `engines.gateway.core.ordering` (the guess of what a sample will still take) and the
configuration's tables; it knows neither the runtime nor the host.

One simulation, in steps:

1. `scenario.read` (JSON) or `guess.scenario` (a TOML file) makes a `Scenario`.
2. `compare.run(scenario, policy)` makes a `Box` and gives it to the policy: `box.run(Production(box, rules))`.
3. The box tells the policy what happened (`arrived`, `progressed`, `rolled`, `trained`, `woken`, `slept`); the policy calls `box.wake`,
   `box.sleep` and `box.train`. A call that breaks the physics is an AssertionError, so no policy looks good by cheating.
4. `compare.figures` sets the outcome against the lower bound and against each pipeline alone (slowdown, Jain's index).
"""
