"""The TOML file as types. A default here is the only one, and the docstring below a field is what README's table says of the key.

README's table is printed from this file: `python -m supervisor.config.schema.key_table`.
"""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=1e7)]
NAME = r"^[a-z][a-z0-9_-]{0,31}\Z"
Name = Annotated[str, msgspec.Meta(pattern=NAME)]
PARSER = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}\Z"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file: unknown keys are refused."""


class HostTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[host]`. Exactly one of `gpus` and `virtual` is given. `gpus` is "auto" (every NVIDIA GPU of the box), indices as nvidia-smi
    counts them, or UUIDs (never both kinds in one list: msgspec cannot say that, a rule does)."""

    gpus: Literal["auto"] | list[int | str] | None = None
    """`"auto"`, or a list of indices or UUIDs. Either this or `virtual`."""
    virtual: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    """So many virtual GPUs, on a machine without GPUs."""
    directory: str | None = None
    """Holds `<config name>/attempt_N` and `latest`; without it `runs` in the working directory. Refused where every user can write, and where it
    belongs to another user than root."""
    shm: str = "/dev/shm"
    """Where weights are handed over; a fast disk where `/dev/shm` is small."""
    residual_mib: Positive = 512
    """What may be used on a GPU nobody has a lease of, beyond what each engine and trainer was first seen to keep there."""
    ports: tuple[int, int] = (20000, 29999)
    """The window of all ports: in a row, 32 for each engine and 16 for each trainer, and one for each gateway."""
    metrics_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None
    """`/metrics` for Prometheus at this port of 127.0.0.1: states, leases, queues, reported figures, restarts, times of recovery.

    `examples/grafana.json` draws it.
    """
    prewarm: bool = True
    """Fork our own children from a process that has imported everything already."""


class SchedulerTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[scheduler]`: who gets how many engines."""

    targets: Literal["oldest-first", "proportional"] = "oldest-first"
    """Who gets how many engines; or `"proportional"`."""
    minimum_hold_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    """An engine that has just been woken is not taken again before, nor before it has served for as long as its wake took."""
    max_starting: Positive = 2
    """Engines that start at the same time."""


class HealthTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[health]`: everything that is awaited has a deadline. Times are in seconds."""

    start_s: Seconds = 900.0
    """How long the processes of an engine or of a trainer may take to start, and a model to be made."""
    drain_s: Seconds = 20.0
    """How long an engine may go on with what runs before it is paused."""
    pause_s: Seconds = 120.0
    """How long an engine may take to give its GPUs back."""
    wake_s: Seconds = 120.0
    """How long an engine may take to come back on its GPUs."""
    load_s: Seconds = 120.0
    """How long an engine may take to load weights."""
    release_deadline_s: Seconds = 120.0
    """Bytes that a trainer still holds so long after leaving a lease mean that it has failed."""
    grace_s: Seconds = 10.0
    """Between asking a process to end and killing it."""
    attempt_s: Seconds = 1200.0
    """How long one attempt to start an engine may take in all, its first weights included."""
    probe_s: Seconds = 5.0
    """Between two looks whether a serving engine answers at all."""
    probe_timeout_s: Seconds = 5.0
    """How long such a look may take."""
    probe_failures: Positive = 4
    """So many of them that fail in a row mean that the engine has failed."""
    progress_s: Seconds = 30.0
    """An engine that has not made a token for so long is asked for one."""
    progress_timeout_s: Seconds = 25.0
    """How long that may take."""
    progress_failures: Positive = 3
    """So many of them that fail in a row mean that the engine has failed."""
    request_failures: Positive = 3
    """So many failed requests in a row, and it must generate one token by the way that requests take, or it has failed."""
    silence_s: Seconds = 300.0
    """Requests run and no token comes for so long: the same trial."""
    canary_s: Seconds = 30.0
    """How long that trial may take."""
    asleep_s: Seconds = 30.0
    """Between two looks at a sleeping engine."""
    watchdog_s: Seconds = 60.0
    """The supervisor's own loop does not turn, or it is stopped, for so long: the guardian ends the run."""
    lag_s: Seconds = 1.0
    """Probes that end while the supervisor itself was late by so much do not count."""
    restarts: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 3
    """So many restarts of a group within `restart_window_s`, then it is retired; 0: at its first failure."""
    restart_window_s: Seconds = 600.0
    """The time in which restarts are counted."""


class LoggingTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[logging]`: what is shown of the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """What the console shows: `"debug"` (every state), `"info"`, `"warning"` or `"error"`; `-v`, `-q` and `--log-level` come before it. The log file
    has everything."""


class NotifyTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[notify]`: who is told what happens."""

    command: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    """A program and its arguments, called at each failure, each recovery and at the end: JSON on its standard input, and `TRAINSHED_EVENT`
    and `TRAINSHED_TEXT` as variables."""


class ModelRecipe(_Table, frozen=True, forbid_unknown_fields=True):
    """A model made on the spot by a child process: `make = "module:function"`, called as function(directory: Path, **options)."""

    make: str
    options: dict[str, str | int | float | bool] = {}


class EngineTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[pipeline.engine]`: one pipeline's engines, all alike. `load` fills in `context` and `kv_tokens`."""

    model: str | ModelRecipe
    """A folder in Hugging Face layout, the name of a model in the local Hugging Face cache (nothing is downloaded), or `{ make =
    "module:function", options = { … } }` to make one."""
    gpus: list[int]
    """Engine r lives on `gpus[r*tp:(r+1)*tp]`; positions in the host's list, from 0."""
    kind: str = "embedded"  # a row of `supervisor.config.kinds.registry`; `load` refuses others
    """`"sglang"`, or the small engine that needs no GPU."""
    tp: Positive = 1
    """GPUs of one engine."""
    ep: Positive = 1
    """sglang: expert-parallel size, within the `tp` GPUs of an engine."""
    members: Literal["one", "per-gpu"] = "one"
    """sglang: one process for the `tp` GPUs of an engine, or one for each (`"per-gpu"`)."""
    slots: Positive = 16
    """Samples that one engine generates at once (embedded: a multiple of 4)."""
    context: Positive | None = None
    """Tokens of prompt and answer together; a longer request is refused. Without it 64; sglang: the model's (`max_position_embeddings` of
    its `config.json`)."""
    kv_tokens: Positive | None = None
    """sglang: tokens of the KV pool, the same at every start. Without it slots x context, where weights and pool then take at most three
    quarters of the GPUs."""
    python: str | None = None
    """sglang: the interpreter of its own environment."""
    deterministic: bool = False
    """sglang: a sample's randomness is its seed's, whatever runs beside it. Slower, and `min_p` is refused (docs/engines.md). Embedded engines
    are so anyhow."""
    args: list[str] = []
    """Further arguments for the engine's program."""
    env: dict[str, str] = {}
    """Variables to set."""
    pass_env: list[str] = []
    """Patterns of variables to pass on (`"WANDB_*"`)."""
    start: Literal["lazy", "eager"] = "lazy"
    """When first needed, or `"eager"`."""
    first_residual_mib: Positive | None = None
    """What an engine that has gone to sleep may keep on each of its GPUs when that is seen for the first time; without it 4096, and a quarter
    of the GPU at most."""


class TrainerTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[pipeline.trainer]`: exactly one of `command` and `entry` is given. `load` fills in `cwd`, and makes the path of `command[0]` absolute."""

    gpus: list[int]
    """The GPUs of `lease("train")`; one rank for each, unless `processes` says otherwise."""
    command: list[str] | None = None
    """A program and its arguments, found on your PATH (a path with a slash: from `cwd`). Either this or `entry`."""
    entry: str | None = None
    """`"module:function"`, run by Trainshed's own Python (`"trainers.grpo:main"` is built in)."""
    steps: Positive = 1
    """Rollouts, each with one training step; `pipeline.steps` in the script."""
    lease_limit_s: Seconds = 7200.0
    """A longer lease means that the trainer has failed."""
    watchdog_s: Seconds | None = None
    """A trainer fails when a rank is stopped, or all say nothing and use no processor, for so long. Without it that is only logged, after 60 s."""
    keep_checkpoints: Positive = 2
    """Older ones are removed."""
    cwd: str | None = None
    """Where the ranks run; without it the file's folder."""
    processes: Literal["per-gpu", "one"] = "per-gpu"
    """`"per-gpu"`: a rank for each GPU, which sees that GPU alone; `"one"`: `command` is run once, sees them all, and makes its ranks by itself
    (`torchrun`, or a script)."""
    roles: dict[str, list[int]] = {}
    """GPUs of further leases: `critic`, `old_log_probs`, `reference`, `value`."""
    first_residual_mib: Positive | None = None
    """What it may keep on a GPU when it has left its first lease (context, NCCL); without it 8192, and a quarter of the GPU at most."""
    options: dict[str, str | int | float | bool] = {}
    """Handed to the trainer (`pipeline.options`); those of the built-in one are in `trainers/grpo/settings.py`."""
    env: dict[str, str] = {}
    """Variables to set."""
    pass_env: list[str] = []
    """Patterns of variables to pass on."""


class GatewayTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[pipeline.gateway]`: which sample goes where, what becomes of it when weights change, and who may ask."""

    on_publish: Literal["continue", "restart", "finish"] = "continue"
    """Samples in flight when weights are published: `"continue"` under the new weights, `"restart"` anew, or `"finish"` under the old
    ones."""
    max_version_lag: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    """Begin anew what was begun more versions ago than this (refused beside `"restart"`)."""
    prefix_affinity: bool = False
    """Prefer the engine that was sent the longest same beginning of a prompt last …"""
    prefix_slack: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25
    """… unless it is busier than the least busy one by more than this share of its slots."""
    auth: bool = True
    """Answer only who has the pipeline's key (`bin/supervise env p1`); `false`: every user of the machine, and every web page."""
    tool_parser: Annotated[str, msgspec.Meta(pattern=PARSER)] | None = None
    """SGLang's parser of the model's tool calls (`"qwen25"`, `"llama3"` …), or `"none"`. Without it: what the chat template tells of."""
    reasoning_parser: Annotated[str, msgspec.Meta(pattern=PARSER)] | None = None
    """SGLang's parser of the model's reasoning (`"qwen3"`, `"deepseek-r1"` …), or `"none"`. Without it: what the chat template tells of."""


class PipelineTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[[pipeline]]`: one RL run, with its engines, its trainer and its gateway."""

    name: Name
    """Lower case, unique."""
    engine: EngineTable
    trainer: TrainerTable
    gateway: GatewayTable = GatewayTable()
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    """A sample's seed comes from (seed, rollout, index) and nothing else. SGLang follows it where its engines are `deterministic`."""
    share: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Its weight against the others."""


class Config(_Table, frozen=True, forbid_unknown_fields=True):
    """A file."""

    pipeline: list[PipelineTable]
    host: HostTable = HostTable()
    scheduler: SchedulerTable = SchedulerTable()
    health: HealthTable = HealthTable()
    logging: LoggingTable = LoggingTable()
    notify: NotifyTable = NotifyTable()
