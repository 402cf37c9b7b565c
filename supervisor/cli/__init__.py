"""The command line: which commands there are, what their arguments mean, and what becomes of their errors.

A command parses arguments, calls one room and prints through a view; it holds no logic of its own. It may know every room. Each command
imports what it needs when it runs, so that `status` does not pay for `run`.

    main.py      the table `COMMANDS`; `check`, `logs`, `env`; the bare form; exit codes of errors
    look.py      `status` of one run, `ps` of every run of the box
    run.py       `run`: loads the file, chooses the attempt, calls `runtime.run`
    doctor.py    `doctor`
    operate.py   `stop restart pause drain resume reset`: one request to a running supervisor
    simulate.py  `plan` and `simulate`
    replay.py    `replay`
    streams.py   standard output and error that may be lost without ending us

To add a command, write a function with a docstring (it is the help) and name it in `COMMANDS`. `bin/supervise` has no list: it puts a guardian
above every form of `run`, and calls the rest directly.

`supervise FILE`, in steps:

1. `bin/supervise` sees that it is a run and executes the guardian, which starts `python -P -m supervisor` and watches it.
2. `main` makes `run FILE` of it; `run` loads the file (ConfigError: every mistake on a line, exit 2) and asks `attempt.find.choose` what to go on with.
3. `attempt.open_chosen` makes or locks the attempt; `runtime.run` runs it and returns a `Summary`.
4. `views.summary` prints it. The exit code is the summary's; an error's is in its type (`supervisor.errors`).
"""
