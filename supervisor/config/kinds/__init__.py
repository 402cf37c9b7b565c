"""The kinds of engines, as a configuration file knows them: one file each, and one row in `registry`. PURE.

A kind says what is particular about its engines while a file is read and checked; `kind.EngineKindConfig` is the contract:

- `findings`: rules for `[pipeline.engine]` that only this kind has;
- `premises`: what it needs of the machine, asked through a `kind.Machine`;
- `filled`: its defaults that hang on the model or the GPUs (a context, the size of a KV pool);
- `program`, `needs`, `advice`, `MEASURED_ON_VIRTUAL_GPUS`: what `check` shows of its processes and their memory;
- `refused_parameters`: sampling parameters that kill its engines, for the gateway to refuse.

How a kind is started, watched and cleaned up is its other half, in `supervisor.runtime`. Nothing else asks `kind == …`.

The files: `kind` (the contract), `embedded` (our own small engine), `sglang`, `registry` (the rows). A kind is a module, because it has no
state; anything with the same names will do.

A kind is pure, although its premises concern the machine: it is *given* a `Machine` to ask. Otherwise each kind would be torn into two
files (rules below, premises above), which is what a reader should not have to put together again. So the arrows are

    schema  <-  kinds  <-  machine (implements `kind.Machine`)  <-  load

and `schema.rules`, which stands below, gets the kind's rules as a function.

One flow: `load` reads `kind = "sglang"` (the choices are the registry's keys) -> `schema.rules` calls `registry.findings` ->
`machine.premises` calls `registry.kind_of(engine).premises` -> `machine.premises.resolved` calls `filled` -> `fit.picture` calls `program`
and `needs`.

To add a kind: write `kinds/vllm.py` with these names, add its row, and a test; `tests/supervisor/config/test_kinds.py` has a sketch.
"""
