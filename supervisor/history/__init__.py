"""The history of a run: who held which GPU and did what there, what each pipeline waited for and for whom, and every figure over time.

This package is PURE: time is an argument, and nothing is read or written here. It may know the scheduler's records and what is measured of them.

    facts.py    what the recording keeps for it: small records, one a change
    changes.py  compares the scheduler with what it was before an event, and gives the facts of that event
    lanes.py    a lane: what one GPU or one pipeline did from moment to moment, without gaps and overlaps
    records.py  waits, marks, lives, figures over time, and what is known of one pipeline
    fold.py     `History`: facts in, lanes, waits, series and marks out
    totals.py   how the time of a GPU or a pipeline splits, and who was waited for

Facts are made once, where the event is handled: the recorder (`attempt.recording`) asks `Changes` after each event and writes what it says
beside the event. An older recording has no facts; `attempt.replay` decides it again and asks the same `Changes`. Whoever shows a run
(`timeline`, `report`, `top`, `ui`) reads the facts and folds them; the supervisor keeps nothing for viewers, and none can slow it.

A segment of a recording begins with every fact that holds then, so the fold can begin at any segment. A fact that says what is known already
changes nothing. So a run whose oldest segments are gone, a killed one and a live one are folded alike.

Example: `History` is fed `opened(...)`, `changed(at, facts)`, `closed(...)`; then `history.gpus[0].slices(...)` are the slices of GPU 0.
"""
