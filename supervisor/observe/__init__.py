"""What a running supervisor tells: its log, its status, its metrics, and the line on which an operator asks.

This package reads the scheduler's records and writes for people and programs. Nothing in it decides anything, and nothing that happens to a
log, a terminal or a reader can stop a run. It may know `host`, `config` and the scheduler's records; it knows neither the runtime nor the
attempt: loggers and values are handed to it.

    sanitize.py         the one place where text of children, models and peers is made fit for a log or a terminal
    logs.py             structlog records to `supervisor.jsonl` and to the console; secrets are hidden
    log_format.py       one record as one readable line
    event_log.py        what happened, in the log: compares the scheduler's records with what they were
    crash_report.py     why a child ended, from its exit and the last lines of its log
    status.py           the state of a run at one moment, as plain data (`status --json`)
    diagnosis.py        whether this machine is fit for runs on GPUs: what was seen, and what to do (`doctor`)
    status_builder.py   fills it from the scheduler's records and a measurement
    waiting_reasons.py  why something waits, in an operator's words
    explanation.py      why a pipeline has its engines, and no more: the planner's reasons as sentences
    control_socket.py   requests and replies between the command line and a running supervisor
    metrics_server.py   serves `/metrics`

One event, in steps: the driver hands it to the scheduler, then the event and its actions to every observer. `EventLog` logs what is new
since the last event, each record with `pipeline`, then `engine` or `group`, then `incarnation`. The status is not kept: it is built when
somebody asks, from the records as they are then.

Names of events in the log, fields of a status and metrics are an interface: programs read them.
"""
