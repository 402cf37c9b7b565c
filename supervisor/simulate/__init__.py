"""The simulator runs the production scheduler in virtual time. It is two programs; neither knows the other.

    faults/             engines, gateways and trainers that answer late, twice, never, or die, around the real `Scheduler`; what must hold after
                        every event is checked against a model of memory that is not the scheduler's (`promises.py`). A seed is a whole run
    workloads/          rollouts of known lengths on a box with physics (slots, moves that take time), under the production scheduler, under
                        the incumbent's rules, alone, and in turn: makespan against a bound (`bin/supervise simulate`, `bin/bench workloads`)
    planner_cases.py    cases for the planner alone (`bin/supervise plan`)

Time is a number that jumps to the next thing that happens; chance is one seeded generator. So each run can be had again: what the simulator
finds becomes a seed in `tests/supervisor/simulate/seeds.txt`. It may know the scheduler and the protocol, nothing that acts.
"""
