"""What this machine must have for a configuration. It looks, and leaves everything as it was.

`premises.findings` yields what is missing, for `load`; `premises.resolved` fills in what a sound file left to the machine. Paths of a file
count from the file's own folder, so that a file means the same from everywhere.

- `premises`: folders, models, trainers, and what an engine's kind asks for. Its `_Machine` is the view that a kind gets.
- `model_files`: a model's size and context, from headers and config.json.
- `hf_cache`: a model's name on the Hugging Face hub as a folder of the local cache. Nothing is downloaded.
- `programs`: the program and the script that a `command` means, and whether the script still imports a name that we gave up.
- `entry_points`: the function that `module:function` names, found by reading sources; nothing of them is executed.
- `builtin_trainer`: the options of the built-in trainer and of its model.
- `interpreter`: the version of a package that another interpreter has, and what of CUDA. The only processes that are started here, with a deadline.
- `host_room`: memory that is left, below a container's limit too, and how shared memory is mounted.
- `port_windows`: whether `[host] ports` has room for every group of the file.
- `process_limits`: whether we may have as many open files and processes as it needs.

Two rules hold for all of it. Only what is sure is complained of: an interpreter that does not answer in time is believed, and a module
that builds its names as it runs may have any. And nothing that a file names may hold us up: files are opened without blocking and read up
to a limit, processes have deadlines.

An example: `python = "/opt/sglang/bin/python"`. `programs.findings` sees that the file is there and may be run; the kind asks
`_Machine.installed`, which starts it once (`interpreter.installed_version`); an old version becomes a finding at `engine.python`.

This room stands above `kinds` and `schema` and may use `supervisor.host` (ports); it knows no run, no scheduler, and starts no child.
"""
