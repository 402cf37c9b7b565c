"""The fault simulation runs the real scheduler against fakes in virtual time: they answer late, twice, never, or die; promises are checked.

It is deterministic: a box, a seed and the chances of faults give one run, event for event. A seed that broke a promise once stays in
tests/supervisor/simulate/seeds.txt. It knows the scheduler by its face, its events and its actions, and nothing of the runtime.

    simulation   puts the four together: performs each action on a fake, feeds each answer, checks the promises after each event
    chaos        what happens by itself: deaths, verdicts (also about the dead), operators
    promises     what must hold, whatever the scheduler's own books say
    fakes        one pipeline: its gateway with its samples, and its trainer, which follows a script
    world        time, chance, physical memory, and who lives; below all others, with `feed` and `die` left to the simulation

Memory is modelled apart from the leases: a fake engine that wakes puts itself on its GPUs, a ghost of a dead one may stay there, and a
measurement looks at that. So a promise can compare what the scheduler believes with what is.

    simulation = Simulation(box, seed=7, steps=3, faults=Faults(dies=0.02, late=0.03, alone=40.0))
    simulation.run()                    # until every pipeline has ended; raises Violation, or AssertionError for a broken invariant
    assert not simulation.incomplete()  # every rollout got all its samples, or its pipeline was given up or stopped

One step of `run`: the nearest moment of the heap, or the scheduler's own deadline, happens; the scheduler decides; each of its actions gets a
delay and perhaps a fault, and its answer goes into the heap. Faults stop at `Faults.until`, so that a run that is not finished long after
that has lost something: liveness is checked by that limit, and by an empty heap without a deadline.
"""
