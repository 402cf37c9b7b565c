"""SGLang as an engine: how a member of a group is launched, and what differs between versions.

This package is PURE: it starts nothing and asks nothing. It knows the shape of a group only as arguments that `engines.lifecycle.members` makes,
and imports nothing of the gateway or of the embedded engine. How SGLang is spoken to is `engines.control`'s, which knows its dialect.

    command.py   `Spec` (one member) -> `arguments`, `environment`, `settings`; which of an operator's flags are refused
    versions.py  `profile(version)`: one row a change that concerns us
    cpu/         what SGLang needs to run on a CPU: pinned requirements and stand-ins for what is not on PyPI. `bin/sglang-cpu` installs them
                 into an environment of their own; nothing of Trainshed imports them.

A launch, in steps:

1. `supervisor.config` asks the interpreter that the TOML names which SGLang it has; `profile` says how that version behaves.
2. The runtime reserves ports, makes a private folder for each member, and writes `settings(key)` there: keys are on no command line.
3. `arguments(Spec(...))` and `environment(...)` give command line and environment. The operator's `args` and `env` come last, so they win;
   flags on which our promises depend (`OURS`) were refused when the file was checked.
4. Every member of one incarnation meets at one rendezvous, which no older incarnation can reach.
"""
