"""The life of an engine, decided without touching one: its states, its health and the shape of its group. PURE.

Nothing here sees a clock, a process or a socket: time is an argument, and answers are data. So the scheduler, the simulators and the tests use
the very same rules as a running box. This package imports `trainers.protocol` (ids) only, and is imported by the scheduler, the runtime and the
configuration's checks.

    state.py    the states of an engine and every transition between them, as one table; the diagram in ARCHITECTURE.md is printed from it
    health.py   when an engine is probed, and which failures condemn it
    members.py  which member of a group has which GPUs and ports

How the three meet. The scheduler moves an engine through `state`'s table; which probes are allowed follows from the state alone (`Mode`).
`runtime.watch.probes` asks `Health.look` what to ask now, asks the engine, and reports with `Health.ended`. A condemned engine is an event for the
scheduler, which quarantines it; the runtime ends its members and starts new ones in the shape that `members.shape` gives.

Example: a serving engine that has produced no token for 30 s.

1. `Health.look` returns a probe `/health_generate`; nothing else is asked of this engine meanwhile.
2. The probe fails. `Health.ended` counts a streak of 1 and reports *suspect*, unless a token came meanwhile, the engine is in another state
   by now, or our own loop was late.
3. After three in a row it reports *condemned*, once; if most engines look bad at that moment, each is asked once more before.
"""
