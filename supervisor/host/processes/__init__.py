"""Processes: started together, watched by pidfd, ended with everything they started, and guarded from above.

This package knows nothing of engines, trainers or the scheduler: a group is a tag, some commands and their processes. It imports
`trainers.protocol` at most. The modules, from the ground up:

    proc.py           reads /proc; `Identity` (pid and start time), `Lineage` (which processes belong to a group)
    pidfd.py          sends signals through verified pidfds
    bootstrap.py      the program that every child runs first: dies with us, waits for its release, then becomes the real one
    child.py          starts one child, held; `Command`, `Status`
    pool.py           the prewarmed pool: children of our own Python forked in milliseconds instead of seconds
    pool_child.py     its server, and what happens inside such a child before its module runs (this file is imported into the pool)
    group.py          groups of children: `Processes` starts them, `Group` watches and ends one
    guardian.py       the process above the supervisor (a program of its own; nothing here imports it but `attempt.sweep`)
    guardian_link.py  our end of the guardian's pipe
    deadman.py        the kernel's timer that kills us when we hang and the guardian is dead

The life of a group:

1. `Processes.spawn(commands, tag=..., record=...)` starts every member, held in `bootstrap`. All start, or none does (SpawnFailed).
2. `record` writes pids and start times to the journal and syncs it; only then is each member released and becomes its program.
   So no child ever runs that a later start of the supervisor could not find again.
3. `Group.exited` returns the first exit of a member, or of any process seen by `watch_tree`. There is no polling.
4. `Group.stop` sends TERM, then KILL; `Group.kill` sends KILL at once: to sessions, descendants and bearers of the tag, until a pass over
   /proc finds nobody. `confirmed_ended` is true from then on. Survivors (a process inside a driver call) are returned, never ignored.
5. `Processes.discard` forgets it.

However we end, nothing survives: a child dies with us (parent-death signal, or the pool's lifeline); the guardian, a subreaper, kills what
escaped; after a double kill the next start sweeps by the journal (`attempt.sweep`). Exit codes belong to whoever started the child: orphans
are reaped one by one, never with `waitpid(-1)`, except in the guardian.
"""
