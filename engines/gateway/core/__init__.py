"""The dispatch core decides everything that a gateway decides: events in, effects out, time as an argument.

It is pure: no clock, no chance, no sockets, no tasks, no logging; the same events at the same times give the same effects. It may import
`trainers.protocol` only. `Dispatch.handle(event, now) -> effects` is its one entrance; `Dispatch.deadline` says when it wants a `Tick`.

    samples          what a sample is as data: key, request, spans, answer, failure
    events           what may happen (orders of the supervisor, askers, tokens, ends), and what the core wants done
    engines          the engines: routed or not, their version, load, back-off
    records          the records that change: rollout, sample, attempt
    rollouts         which rollouts are open, expected, closed; whose answers are kept
    continuation     what is sent for the rest of an interrupted sample; stop strings and ends at the seam; which requests are atomic
    publish_policy   what becomes of a sample in flight when weights are published
    attempts         what runs on the engines, and what the engines' tokens and ends mean
    ordering/        which waiting sample is next, and which engine it goes to
    dispatch         all of them together

Each module imports only from those above it.

A sample is WAITING (in its rollout, and in the queue if that is open), IN_FLIGHT (it has an attempt) or DONE (it has an outcome). Only
`dispatch` moves it between these. An attempt belongs to one life of one engine; what comes for an attempt that was cut is dropped.

    core = Dispatch(seed=7)
    core.handle(OpenRollout(order=1, rollout=0, target=8), now=0.0)                          # [Done(order=1)]
    core.handle(Ask(asker=1, rollout=0, token="3", request=request), now=0.1)                # []: no engine yet
    core.handle(Route(order=2, engine=0, incarnation=1, url=…, key=…, slots=4, version=0), now=9.0)   # [Done(order=2), Start(attempt=…)]
    core.handle(Tokens(attempt, [5, 6], [-0.1, -0.7]), now=9.2)                              # []: nobody streams
    core.handle(Ended(attempt, Finished({"type": "stop"})), now=9.3)                         # [Deliver(asker=1, Answer(…))]
"""
