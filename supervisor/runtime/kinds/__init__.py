"""The kinds of engine, as the runtime starts and cleans them up: one file each, and one row in `registry`.

A kind answers two calls (`engine_kind.EngineKind`): `look`, once and before anything starts, finds out what it needs to know of this
machine; `prepare` makes what the members of one incarnation need besides processes, and their command lines. It returns an `EngineLife`,
which `engines.Engines` keeps as long as the incarnation lives:

    commands   what the members run, the head first
    ready      when the engine is ready and able: by default its listener is ours, and one token came through the real endpoint
    follow     what it leaves behind, looked for while it starts (a start may be killed), and `trace`, once more when it is ready
    verify     whether the bytes that it has loaded are those of the version
    clean_up   nothing of the incarnation lives: what it has left is removed

A kind knows nothing of ports, leases or the scheduler: the endpoint is given to it (`engine_kind.EngineStart`), and whoever calls it
answers the action. All kinds speak SGLang's control dialect (`engines.control`). What a file may say about a kind is its other half, in
`supervisor.config.kinds`; whether its memory shows on a virtual GPU is said there, too.

The files: `engine_kind` (the contract, and `Endpoint`), `embedded` (our own small engine), `sglang`, `registry` (the rows). `registry`
imports the kinds, these import `engine_kind`, and that imports `run_facts`; of the runtime, a kind imports nothing else.

To add a kind: write `kinds/vllm.py` with a class like `Sglang` and a subclass of `EngineLife`, and add a row in `registry.py` and in
`supervisor.config.kinds`. `tests/supervisor/runtime/test_third_kind.py` has a sketch, which it starts.
"""
