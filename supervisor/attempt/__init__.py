"""One attempt at a run, as it lies on the disk: made, locked, written while it goes on, found and resumed afterwards.

An attempt is the folder `<runs>/<config name>/attempt_N`; `directory.py` shows its layout. Everything about one run lies in it. This package
may know the configuration, the scheduler's records, `observe` and `host`; it starts no process and decides nothing about a running box.

    directory.py    makes and locks an attempt; where its files lie; `latest`; how many attempts there are
    find.py         which attempt somebody means; `choose` and `open_chosen` are what `run` needs
    box_runs.py     the runs of this box, of all users: whose each is and which GPUs it holds
    checkpoints.py  what each trainer saved, in `checkpoints/<pipeline>/resume.json`: recorded, rotated, looked for
    gateway_keys.py  URL and key of each gateway (`gateways.json`, 0600)
    resume.py       what earlier starts of an attempt have done, and what of the configuration is still to do
    journal.py      which processes live, so that a later start can find them (`journal.jsonl`)
    sweep.py        ends and removes what a doubly killed run has left, by its journal
    recording.py    every event and what the scheduler decided (`events/`)
    state_codec.py  the scheduler's whole state as JSON; the registry of the names that recordings use
    replay.py       decides a recording again and compares
    results.py      what the run comes to while it goes on; the end of it
    outcome.py      what became of each pipeline, and the exit code
    summary.py      `figures.json` and `summary.json`
    post_mortem.py  how an attempt stands whose supervisor does not answer

The life of an attempt:

1. `new_attempt` makes it and takes its lock, or `open_attempt` takes the lock of an old one. Whoever has the lock is its supervisor.
2. `RunDirectory.begin` when nothing can refuse the run any more: only now `latest` points at it. One that never began is removed again.
3. While it runs, the journal, the recording, the checkpoints and the figures are written. A full disk loses lines, never the run.
4. At the end `summary.json` says what came of it. A killed supervisor leaves none: then `post_mortem` says so, `sweep` cleans up, and
   `run --resume` goes on from the newest checkpoints that are there.
"""
