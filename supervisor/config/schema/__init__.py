"""What a configuration file may say, whatever machine it is read on. PURE: no clock, no file, no environment variable.

Everything here is a function of plain values. It works on broken files, too: what is wrong becomes a `Finding`, never an exception.

- `tables`: the TOML file as msgspec types, one class for each table. A field's default is *the* default: nothing else repeats it, and the
  docstring below a field is what README says of the key.
- `key_table`: prints README's table of keys from these types.
- `findings`: `Finding` (a problem at a key, and what to do), and the facts that come from outside (`GpuFact`, `ModelSize`).
- `typecheck`: walks plain values along msgspec's description of the types and collects every mistake; msgspec itself stops at the first.
- `rules`: what types cannot say (a name that occurs twice, GPUs that are not there). `Draft` is a file's sound parts. The rules of an
  engine's kind come in as a function, because kinds stand above the schema.
- `layers`: a further file or a setting, laid over a file; `${NAME}` in its strings.
- `line_numbers`: where a key stands in the text, since `tomllib` keeps no positions.
- `toml_text`: values and keys as an operator would write them, for messages.

Example: `gpus = [0, 9]` on a host with four GPUs. `typecheck.read` makes an `EngineTable`; `rules.findings` yields
`Finding("pipeline[0].engine.gpus", [0, 9], "GPU 9 is not there", "The host has GPUs 0 to 3.")`; `load` looks up the line and prints
`run.toml:9: pipeline p1: engine.gpus = [0, 9]: GPU 9 is not there. The host has GPUs 0 to 3.`

A finding names further keys in `also` when it was concluded from them: if one of those cannot be read, the finding is not shown.
"""
