"""The configuration: what a TOML file may say, and how it becomes a `Config` on which a run can rely.

`load.load(path)` either returns a sound configuration or raises one `ConfigError` that names every mistake of the file, each with its line,
what is wrong and what to do. It starts nothing, and runs no code of the operator's. `check` and `run` read a file in the same way.

How a file is read (`load`), step by step; each step hands on what is sound, so that one reading finds everything:

1. bytes to plain values, by `tomllib`; further files and `--set` are laid over them, `${NAME}` is filled in (`sources`, `schema.layers`);
2. plain values against the types (`schema.tables`), by `schema.typecheck`. A table that is broken is left out of the draft;
3. the rules that types cannot say: `schema.rules` for every file, and those that an engine's own kind adds (`kinds`);
4. the premises: what this machine lacks for the file (`machine.premises`, and the kind's). Only here is anything looked up;
5. findings become mistakes with lines and names. A finding that only follows from something unreadable is dropped;
6. without a mistake, `machine.premises.resolved` makes every path absolute and fills in what was left out.

The rooms, from the bottom; a room imports only what stands below it:

- `schema`: the tables with their defaults, the walk over types, the rules. It looks at nothing but its arguments.
- `kinds`: one file for each kind of engine, and one row in `kinds.registry`. It is pure, too.
- `limits`: `[health]` and `[scheduler]` as the types that the scheduler and the health watch take. The tables own every default.
- `child_environment`: which variables of our own environment a child sees.
- `machine`: this machine's folders, programs, interpreters, models and ports, as far as a file names them.
- `fit`: the picture that `check` prints: who may hold which GPU, what it needs, whether it fits.
- `sources`: reads the files, and knows where each key was written.
- `load`: all of it.

To add a key: a field of its table with a docstring (README's table is printed from both), a rule if its type cannot say everything, and
the place that acts on it. To add a kind of engine: a file beside `kinds.sglang`, a row, and its other half in `supervisor.runtime`.

The host's own code (`supervisor.host`) and the scheduler know nothing of this package; it may know both.
"""
