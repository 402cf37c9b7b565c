"""Findings of users, to be had again: `bin/bench finding` lists them, `bin/bench finding NAME [NAME ...]` runs them one after the other.

What they showed at commit 0ab2fc1 and what they show now: bench/findings/README.md. A case is a run with a configuration of its own
(`runs/findings/NAME/case.toml`),
or a script by itself. Other environments are named by variables: TRL_PYTHON (trl, peft, accelerate), SGLANG_PYTHON, PYTHON39.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
USERS: Final = CHECKOUT / "bench" / "findings" / "users"
RUNS: Final = CHECKOUT / "runs" / "findings"
LIMIT_S: Final = 240
LINES: Final = 30
"""Of each log, from its end."""
LARGE: Final = {"hidden": 2048, "layers": 4, "heads": 16, "kv_heads": 8, "intermediate": 8192}
"""1.007 GB in float32."""


@dataclass(frozen=True)
class Pipeline:
    """One pipeline of a case. Of `command`, a first word in capitals names the variable with an interpreter; PROJECT is our own."""

    command: tuple[str, ...]
    engines: tuple[int, ...] = (0, 1)
    gpus: tuple[int, ...] = (0,)
    steps: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    roles: dict[str, list[int]] = field(default_factory=dict)
    entry: str = ""
    kind: str = "embedded"
    large: bool = False
    name: str = "case"


@dataclass(frozen=True)
class Case:
    """A run of `pipelines`, or without any the script alone, in the folder of its user."""

    user: str
    pipelines: tuple[Pipeline, ...] = ()
    script: str = ""
    stop_after_s: float = 0.0
    """Ctrl-C, so many seconds after the start."""


def stack(mode: str, gpus: tuple[int, ...] = (0,), python: str = "PROJECT") -> Case:
    return Case("torch_stacks", (Pipeline((python, "stack.py"), gpus=gpus, options={"mode": mode}),))


def algorithm(
    mode: str, engines: tuple[int, ...] = (0, 1), steps: int = 3, roles: dict[str, list[int]] | None = None, **options: object
) -> Case:
    return Case(
        "algorithms", (Pipeline(("PROJECT", "algos.py"), engines, steps=steps, options={"mode": mode, **options}, roles=roles or {}),)
    )


def launched(*command: str, gpus: tuple[int, ...] = (0,), steps: int = 1, stop_after_s: float = 0.0) -> Case:
    return Case("launching", (Pipeline(command, gpus=gpus, steps=steps),), stop_after_s=stop_after_s)


def agent_beside_another(target: int, mode: str = "agent") -> Case:
    agent = Pipeline(("PROJECT", "algos.py"), steps=2, options={"mode": mode, "tool_s": 3.0, "target": target}, name="agent")
    return Case("algorithms", (agent, Pipeline(("PROJECT", "greedy.py"), gpus=(1,), steps=2, name="other")))


def large(script: str, engine: int = 1, gpus: tuple[int, ...] = (0,), steps: int = 2, kind: str = "embedded") -> Case:
    return Case("large_models", (Pipeline(("PROJECT", script), (engine,), gpus, steps, {"resident": True}, kind=kind, large=True),))


TWO: Final = (0, 1)
CASES: Final[dict[str, Case]] = {
    "nan_weights": Case("nan_weights", (Pipeline((), (0,), entry="nan:main"),)),
    "trl": Case("trl", (Pipeline(("TRL_PYTHON", "trl_grpo.py"), steps=5),)),
    "trl_dies": Case("trl", (Pipeline(("TRL_PYTHON", "trl_grpo.py"), steps=5, options={"dies_at": 2}),)),
    "trl_two_ranks": Case("trl", (Pipeline(("TRL_PYTHON", "trl_grpo.py"), gpus=TWO, steps=4),)),
    "trl_adapter": Case("trl", (Pipeline(("TRL_PYTHON", "trl_short.py"), steps=5),)),
    "trl_adapter_two_ranks": Case("trl", (Pipeline(("TRL_PYTHON", "trl_short.py"), gpus=TWO, steps=4),)),
    **{
        mode: stack(mode, TWO)
        for mode in ("ddp", "ddp_naive", "ddp_view", "ddp_view_nores", "fsdp", "fsdp_mp", "fsdp_naive", "fsdp_resident")
    },
    **{mode: stack(mode) for mode in ("bf16", "ckpt", "compile")},
    **{mode: stack(mode, python="TRL_PYTHON") for mode in ("lora_merged", "lora_naive", "lora_adapter")},
    **{
        f"diverge_{'view' if view else 'copy'}_{'none' if none else 'zero'}": Case(
            "torch_stacks", (Pipeline(("PROJECT", "diverge.py"), gpus=TWO, steps=1, options={"view": view, "none": none}),)
        )
        for view in (False, True)
        for none in (False, True)
    },
    "padded_vocabulary": Case("torch_stacks", (Pipeline(("PROJECT", "badshape.py"), (0,), steps=1),)),
    "naive_publishes_sglang": Case("torch_stacks", (Pipeline(("PROJECT", "naive_sglang.py"), (1,), steps=1, kind="sglang"),)),
    "bucket_view": Case("torch_stacks", script="bucket_view.py"),
    "bucket_view_none": Case("torch_stacks", script="bucket_view_none.py"),
    "flat": Case("torch_stacks", script="flat.py"),
    "storage_resident": Case("torch_stacks", script="storage_resident.py"),
    "bash": launched("bash", "wrap.sh"),
    "python_wrapper": launched("PROJECT", "wrap.py"),
    "torchrun": launched("PROJECT", "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=24990", "t.py"),
    "torchrun_two_ranks": launched("PROJECT", "-m", "torch.distributed.run", "--nproc-per-node=2", "t.py", gpus=TWO),
    "accelerate": launched("TRL_PYTHON", "acc.py", gpus=TWO),
    "accelerate_launch": launched(
        "TRL_PYTHON", "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--main_process_port=24991", "acc.py"
    ),
    "data_loaders": launched("PROJECT", "workers.py", steps=2),
    "signals": launched("PROJECT", "signals.py", steps=5000, stop_after_s=12.0),
    "deaf": launched("PROJECT", "deaf.py", steps=5000, stop_after_s=12.0),
    "loud": launched("PROJECT", "-u", "loud.py"),
    "python39": launched("PYTHON39", "py39.py"),
    "off_policy": algorithm("offpolicy", train_s=0.5),
    "off_policy_one_gpu": algorithm("offpolicy", (0,), train_s=0.5),
    "inside_a_lease": algorithm("offpolicy_inside"),
    "inside_a_lease_one_gpu": algorithm("offpolicy_inside", (0,)),
    "dapo": algorithm("dapo"),
    "oversample": algorithm("oversample"),
    "agent": algorithm("agent"),
    "roles": algorithm("roles", roles={"critic": [1]}),
    "evaluation": algorithm("eval"),
    "variable_length": algorithm("variable", steps=50),
    "agent_beside_another_16": agent_beside_another(16),
    "agent_beside_another_48": agent_beside_another(48),
    "agent_by_trajectories": algorithm("trajectories"),
    "agent_by_trajectories_beside_another": agent_beside_another(16, "trajectories"),
    "openai_agent": Case("algorithms", (Pipeline(("PROJECT", "openai_agent.py"), steps=1),)),
    "ranks": Case("algorithms", (Pipeline(("PROJECT", "ranks.py"), gpus=TWO, steps=1),)),
    "calls": Case("algorithms", (Pipeline(("PROJECT", "turns.py"), steps=1, roles={"critic": [0]}),)),
    "calls_two_ranks": Case("algorithms", (Pipeline(("PROJECT", "turns.py"), gpus=TWO, steps=1, roles={"critic": [0]}),)),
    "large": large("big.py", steps=3),
    "large_after_the_lease": large("big_after.py"),
    "large_shared_gpu": large("big.py", 0, steps=3),
    "large_sglang": large("big.py", kind="sglang"),
    "large_fsdp": large("fsdp_big.py", gpus=TWO, steps=1),
    "large_writes": Case("large_models", script="micro.py"),
    "host_buffers": Case("large_models", script="reuse.py"),
}


MODULES: Final = ("early_figures", "gateway_tokens")


class Missing(Exception):
    """An environment that a case needs, and that no variable names."""


def interpreter(name: str) -> str:
    """Return the Python that a word in capitals stands for. Raises Missing."""
    if name == "PROJECT":
        return sys.executable
    if name not in os.environ:
        raise Missing(f"needs {name}: an interpreter")
    return os.environ[name]


def toml(case: Case) -> str:
    """Write the case's configuration. Raises Missing."""
    lines = ["[host]", "virtual = 2", "ports = [24000, 24999]", 'directory = "runs"']
    for pipeline in case.pipelines:
        model = {"task": "class", "seed": 3, **(LARGE if pipeline.large else {})}
        lines += ["[[pipeline]]", f'name = "{pipeline.name}"', "seed = 3", "[pipeline.engine]", f'kind = "{pipeline.kind}"']
        lines += [
            f'model = {{ make = "trainers.grpo.tiny:make", options = {_inline(model)} }}',
            f"gpus = {list(pipeline.engines)}",
            "context = 32",
        ]
        lines += [f"slots = {16 if pipeline.kind == 'embedded' and not pipeline.large else 4}"]
        if pipeline.kind == "sglang":
            lines += [f"python = {json.dumps(interpreter('SGLANG_PYTHON'))}", 'args = ["--dtype", "float32"]']
        lines += ["[pipeline.trainer]", f"gpus = {list(pipeline.gpus)}", f"steps = {pipeline.steps}"]
        if pipeline.entry:
            lines += [f'entry = "{pipeline.entry}"']
        else:
            lines += [
                f"command = {json.dumps([interpreter(word) if word.isupper() or word == 'PYTHON39' else word for word in pipeline.command])}"
            ]
        lines += [f"options = {_inline(pipeline.options)}"] if pipeline.options else []
        lines += [f"roles = {_inline(pipeline.roles)}"] if pipeline.roles else []
        lines += [f"env = {{ PY = {json.dumps(sys.executable)} }}"] if pipeline.command[:1] == ("bash",) else []
    return "\n".join(lines) + "\n"


def _inline(table: dict[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + " }"


def run(name: str) -> int:
    """Run one case in a fresh folder, and print the end of what it said. Raises Missing."""
    case = CASES[name]
    folder = RUNS / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(USERS / case.user, folder)
    if case.pipelines:
        (folder / "case.toml").write_text(toml(case))
        command = [str(CHECKOUT / "bin" / "supervise"), str(folder / "case.toml")]
        env = {**os.environ, "PYTHONPATH": ""}
    else:
        command = [sys.executable, case.script]
        env = {**os.environ, "MODEL": str(folder / "model")}
        if "MODEL" in (folder / case.script).read_text():
            from trainers.grpo.tiny import make

            make(folder / "model", task="class", seed=3, **LARGE)
    limit = case.stop_after_s or LIMIT_S
    with (
        (folder / "output.log").open("wb") as output,
        subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output) as process,
    ):
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(60)
    print(f"=== {name}: exit code {process.returncode}")
    for log in [folder / "output.log", *sorted(folder.glob("runs/*/attempt_*/logs/*.trainer.*.log"))]:
        print(f"--- {log.relative_to(folder)}")
        print("\n".join(line[:300] for line in log.read_text(errors="replace").splitlines()[-LINES:]))
    return process.returncode


def measure(name: str) -> int:
    """Run one of our own measurements, a module beside the users' folders."""
    print(f"=== {name}", flush=True)
    return subprocess.run([sys.executable, "-P", "-m", f"bench.findings.{name}"], cwd=CHECKOUT, check=False).returncode


def main(names: list[str]) -> int:
    """Run the named cases, or list all. Return 2 for an unknown name or a missing environment."""
    if not names or (unknown := set(names) - set(CASES) - set(MODULES)):
        print(f"there is no {', '.join(sorted(unknown))}; there are:" if names else "there are:", " ".join([*MODULES, *CASES]))
        return 2 if names else 0
    failed = 0
    for name in names:
        try:
            measure(name) if name in MODULES else run(name)
        except Missing as error:
            print(f"=== {name}: {error}")
            failed = 2
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
