"""The supervisor is one process for one box: it decides who holds which GPU, and acts on it.

`scheduler` decides everything, in one function of events and time. `runtime` acts: it starts and ends processes, measures memory, moves
weights, and turns each action of the scheduler into one event. The other rooms serve the two.

    cli         the commands of `bin/supervise`
    views       what a person sees: tables, logs, metrics
    runtime     a run from start to end; `kinds`: how each kind of engine is driven
    attempt     one run on disk: directory, journal, recording, checkpoints, summary
    simulate    the scheduler in virtual time: with faults, and beside other policies
    history     PURE: what a recording tells, folded: who held which GPU, who waited for whom, figures over time
    observe     what is told of a run: logs, status, waits in words, the operator's socket
    config      a TOML file, from text to types; what is wrong with it; whether it fits
    host        processes, GPUs, ports, sockets and files of this machine
    scheduler   every decision ; no I/O
    errors.py   whose fault an error is, and the exit code that says so

Imports go down this list only (`views` and `runtime` know nothing of each other, nor do `host` and `scheduler`); contracts in `pyproject.toml`
hold it. The life of the process: `bin/supervise` starts the guardian (`host/processes/guardian.py`), which starts `python -m supervisor`;
`cli/main.py` reads the command line; `cli/run.py` loads the file and takes an attempt; `runtime/run.py` prepares, wires and serves the run
until the scheduler is finished; `attempt/results.py` writes what came of it.
"""
