"""Watching: what could hang without a word is looked at from outside, by somebody who does not hang with it.

    heartbeat.py   our own loop, by the guardian: it beats every second (and looks whether the guardian is stopped)
    probes.py      engines, by HTTP
    silence.py     the ranks of trainers, by /proc: no thread of ours runs in a user's code

The pool's server is watched by `host.processes.pool`. All of these report and log; the scheduler decides what ends.
"""
