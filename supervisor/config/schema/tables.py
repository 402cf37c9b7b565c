"""The TOML file as types. Defaults here are the documented defaults."""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e7)]
NAME = r"^[a-z][a-z0-9_-]{0,31}\Z"
Name = Annotated[str, msgspec.Meta(pattern=NAME)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class HostTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[host]`. Exactly one of `gpus` and `virtual` is given. `gpus` is "auto" (every NVIDIA GPU of the box), indices as nvidia-smi
    counts them, or UUIDs (never both kinds in one list: msgspec cannot say that, a rule does)."""

    gpus: Literal["auto"] | list[int | str] | None = None
    virtual: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    directory: str | None = None  # holds <config name>/attempt_N and latest; default `runs` in the working directory
    shm: str = "/dev/shm"
    residual_mib: Positive = 512
    ports: tuple[int, int] = (20000, 29999)
    metrics_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None  # /metrics for Prometheus on 127.0.0.1
    prewarm: bool = True


class SchedulerTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[scheduler]`."""

    targets: Literal["oldest-first", "proportional"] = "oldest-first"
    minimum_hold_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    max_starting: Positive = 2


class HealthTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[health]`: every awaited thing has a deadline (seconds)."""

    start_s: Seconds = 900.0
    drain_s: Seconds = 20.0
    pause_s: Seconds = 120.0
    wake_s: Seconds = 120.0
    load_s: Seconds = 120.0
    release_deadline_s: Seconds = 120.0
    grace_s: Seconds = 10.0
    attempt_s: Seconds = 1200.0
    probe_s: Seconds = 5.0
    probe_timeout_s: Seconds = 5.0
    probe_failures: Positive = 4
    progress_s: Seconds = 30.0
    progress_timeout_s: Seconds = 25.0
    progress_failures: Positive = 3
    request_failures: Positive = 3
    silence_s: Seconds = 300.0
    canary_s: Seconds = 30.0
    asleep_s: Seconds = 30.0
    lag_s: Seconds = 1.0
    restarts: Positive = 3
    restart_window_s: Seconds = 600.0


class LoggingTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[logging]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class ModelRecipe(_Table, frozen=True, forbid_unknown_fields=True):
    """A model made on the spot by a child process: `make = "module:function"`, called as function(directory: Path, **options)."""

    make: str
    options: dict[str, str | int | float | bool] = {}


class EngineTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[pipeline.engine]`."""

    model: str | ModelRecipe
    gpus: list[int]
    kind: Literal["embedded", "sglang"] = "embedded"
    tp: Positive = 1
    ep: Positive = 1  # sglang: expert-parallel size within the tp GPUs
    members: Literal["one", "per-gpu"] = "one"  # sglang: processes of one engine
    slots: Positive = 16
    context: Positive | None = None  # tokens of prompt and answer together; `load` fills in 64, for sglang what the model was made for
    kv_tokens: Positive | None = None  # sglang: tokens of the KV pool, the same at every start; `load` fills in slots x context
    python: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    pass_env: list[str] = []
    start: Literal["lazy", "eager"] = "lazy"


class TrainerTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[pipeline.trainer]`. Exactly one of `command` (an argv) and `entry` ("module:function", run in our own interpreter). `gpus` is the role "train"."""

    gpus: list[int]
    command: list[str] | None = None
    entry: str | None = None
    steps: Positive = 1
    lease_limit_s: Seconds = 7200.0
    keep_checkpoints: Positive = 2
    cwd: str | None = None  # working directory of the ranks; `load` fills in the folder of the configuration file, and command[0] whole
    roles: dict[str, list[int]] = {}
    options: dict[str, str | int | float | bool] = {}
    env: dict[str, str] = {}
    pass_env: list[str] = []


class GatewayTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[pipeline.gateway]`."""

    # samples in flight when weights are published: go on under the new ones, begin anew under them, or end under the old ones
    on_publish: Literal["continue", "restart", "finish"] = "continue"
    max_version_lag: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None  # what was begun more versions ago begins anew
    prefix_affinity: bool = False  # prefer the engine that was sent the same beginning last …
    prefix_slack: Annotated[float, msgspec.Meta(ge=0, le=1)] = (
        0.25  # … if no more of its slots are taken than of the least busy one, plus this
    )


class PipelineTable(_Table, frozen=True, forbid_unknown_fields=True):
    """`[[pipeline]]`."""

    name: Name
    engine: EngineTable
    trainer: TrainerTable
    gateway: GatewayTable = GatewayTable()
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    share: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Config(_Table, frozen=True, forbid_unknown_fields=True):
    """A whole file."""

    pipeline: list[PipelineTable]
    host: HostTable = HostTable()
    scheduler: SchedulerTable = SchedulerTable()
    health: HealthTable = HealthTable()
    logging: LoggingTable = LoggingTable()
