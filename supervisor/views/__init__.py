"""What an operator sees: tables, lines and pages made of plain data.

A view takes data and gives text; it starts nothing, asks nobody and changes nothing. It may know `observe`, `attempt`, the configuration, the
scheduler's records and the simulator's figures. It must not know the runtime or the host.

    check.py        `check`: what a configuration means on this machine; also how mistakes are printed
    status.py       `status`: a status as tables; formats of sizes, times and rewards that other views use
    ps.py           `ps`: a row a run of this box
    table.py        tables that fit a terminal, or a pipe
    logs.py         `logs [-f]`: merges the supervisor's records with the children's own files
    log_sources.py  which file belongs to whom, and what an operator may name
    progress.py     a line a pipeline while a run is under way
    exports.py      `env`: lines for a shell
    doctor.py       `doctor`: a diagnosis, a line for each thing that was looked at
    summary.py      the table at the end of a run
    metrics.py      the exposition that Prometheus reads
    simulation.py   the tables of `simulate`

Two rules. Text that came from a child, a model or a file goes through `observe.sanitize` and is never read as markup. What a terminal has no
room for gives way in a stated order, and names never do; on a pipe nothing is cut or wrapped.

Example: `supervise status` asks the control socket for a `Status` and calls `views.status.show(status)`; `status --json` prints the same
data without a view.
"""
