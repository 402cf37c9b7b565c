"""The resolved picture: who may hold which GPU, and whether it fits."""

import io
from pathlib import Path

from rich.console import Console

from supervisor.config.fit import CONTEXT, Machine, Picture, picture
from supervisor.config.load import Loaded
from supervisor.config.machine.host_room import memory_free, shared_memory
from supervisor.config.machine.model_files import model_size
from supervisor.config.schema.findings import GpuFact, ModelSize
from supervisor.config.schema.tables import Config, EngineTable, HostTable, ModelRecipe, PipelineTable, TrainerTable
from supervisor.errors import Mistake
from supervisor.views import check as view
from trainers.protocol.ids import GpuId

GIB = 1 << 30
TINY = ModelRecipe("trainers.grpo.tiny:make")


def pipeline(name: str, train: list[int], infer: list[int], **engine: object) -> PipelineTable:
    return PipelineTable(name, EngineTable(engine.pop("model", TINY), infer, **engine), TrainerTable(train, entry="a:b"))  # type: ignore[arg-type]


def gpus(count: int, total: int | None = None, name: str = "virtual") -> tuple[GpuFact, ...]:
    return tuple(GpuFact(GpuId(i), name, total) for i in range(count))


def machine(of: tuple[GpuFact, ...], room: int | None = 64 * GIB) -> Machine:
    return Machine(of, room, room, {"PATH": "/bin", "SHLVL": "1"})


QUICKSTART = Config(
    [pipeline("p1", [0, 1], [0, 1, 2, 3], context=32), pipeline("p2", [2, 3], [0, 1, 2, 3], context=32)], HostTable(virtual=4)
)


def printed(config: Config, found: Picture) -> list[str]:
    loaded = Loaded(config, Path("quickstart.toml"), "quickstart", b"")
    out = io.StringIO()
    view.show(loaded, found, Console(file=out))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_quickstart() -> None:
    config = Config(QUICKSTART.pipeline, HostTable(virtual=4, directory="/data/runs"))
    assert printed(config, picture(config, machine(gpus(4)), {})) == [
        "What runs",
        "            how many   what                                         with",
        "p1/engine   4 engines  engines.embedded, by Trainshed's own Python  16 slots, context 32 tokens",
        "p1/trainer  2 ranks    a:b, by Trainshed's own Python               1 step",
        "p2/engine   4 engines  engines.embedded, by Trainshed's own Python  16 slots, context 32 tokens",
        "p2/trainer  2 ranks    a:b, by Trainshed's own Python               1 step",
        "Who may hold which GPU",
        "GPU  name     p1               p2",
        "0    virtual  train, engine 0  engine 0",
        "1    virtual  train, engine 1  engine 1",
        "2    virtual  engine 2         train, engine 2",
        "3    virtual  engine 3         train, engine 3",
        "Does it fit",
        "where                     needs at least  has       verdict",
        "GPU 0                     unmeasured      no limit  unmeasured",
        "GPU 1                     unmeasured      no limit  unmeasured",
        "GPU 2                     unmeasured      no limit  unmeasured",
        "GPU 3                     unmeasured      no limit  unmeasured",
        "shared memory (/dev/shm)  unmeasured      64.0 GiB  unmeasured",
        "host memory               unmeasured      64.0 GiB  unmeasured",
        "Where and with what",
        "",
        "run directory                    /data/runs/quickstart/attempt_N",
        "ports                            20000 to 29999 on 127.0.0.1",
        "variables that every child gets  PATH",
        "and those dropped                SHLVL",
        "Note: p1: its model is made when the run starts, so its size is not known yet.",
        "Note: p2: its model is made when the run starts, so its size is not known yet.",
        "The configuration is sound; nothing was started.",
    ]


def test_a_box_that_is_too_small_is_named_by_what_is_short() -> None:
    config = Config([pipeline("p1", [0], [0, 1], kind="sglang", tp=2, model="/m")], HostTable(gpus="auto"))
    sizes = {"p1": ModelSize(16 * GIB, None)}
    found = picture(config, machine(gpus(2, 24 * GIB, "H200"), room=40 * GIB), sizes)
    assert [plan.needs for plan in found.gpus] == [64 * GIB + CONTEXT, 8 * GIB], (
        "training: weights, gradients and two moments, beside a sleeping engine; an engine: its half"
    )
    assert [plan.verdict for plan in found.gpus] == ["does not fit", "fits"]
    assert [room.verdict for room in found.rooms] == ["does not fit", "does not fit"]
    assert not found.fits
    assert "it does not fit" in printed(config, found)[-1]


def test_whoever_lives_beside_the_holder_has_a_context_there() -> None:
    both = [pipeline(name, [0] if name == "p1" else [2], [0], kind="sglang", model="/m") for name in ("p1", "p2")]
    sizes: dict[str, ModelSize | None] = {name: ModelSize(GIB, None) for name in ("p1", "p2")}
    found = picture(Config(both, HostTable(gpus="auto")), machine(gpus(3, 24 * GIB)), sizes)
    assert found.gpus[0].needs == 4 * GIB + 2 * CONTEXT, "two sleeping engines beside the trainer"


def test_a_containers_shared_memory_is_named_with_what_to_do() -> None:
    config = Config([pipeline("p1", [0], [0, 1], kind="sglang", tp=2, model="/m")], HostTable(gpus="auto"))
    box = Machine(gpus(2, 80 * GIB, "H100"), 64 * GIB, 60 << 20, {}, 64 << 20)
    found = picture(config, box, {"p1": ModelSize(GIB, None)})
    assert [room.verdict for room in found.rooms] == ["does not fit", "fits"]
    assert any("--shm-size=32g" in note and "64 MiB in all" in note for note in found.notes)
    assert view.short_of(found) == ["shared memory (/dev/shm) needs 3.0 GiB at least and has 60 MiB"]
    assert not any("--shm-size" in note for note in picture(config, machine(gpus(2)), {}).notes)


def cgroup(root: Path, name: str, **files: object) -> None:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file.replace("_", ".", 1)).write_text(f"{text}\n")


def test_a_containers_limit_counts_and_not_the_machines_memory(tmp_path: Path) -> None:
    """Files in /dev/shm count against it: who goes over it is killed, not refused."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {100 << 20} kB\n")
    assert memory_free(proc, tmp_path / "none") == 100 * GIB
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    cgroup(tmp_path / "two", "a", memory_max=20 * GIB, memory_current=15 * GIB, memory_stat=f"anon 1\ninactive_file {5 * GIB}")
    cgroup(tmp_path / "two", "a/b", memory_max="max", memory_current=GIB)
    assert memory_free(proc, tmp_path / "two") == 10 * GIB
    (proc / "self" / "cgroup").write_text("4:memory:/c\n1:cpu:/d\n")
    folder = tmp_path / "one" / "memory" / "c"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(8 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(6 * GIB))
    assert memory_free(proc, tmp_path / "one") == 2 * GIB


def test_how_a_folder_is_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw,relatime - ext4 x rw\n2 1 0:2 / {tmp_path} rw,nosuid,noexec - tmpfs shm rw\n")
    (tmp_path / "in").mkdir()
    found = shared_memory(str(tmp_path / "in"), mounts)
    assert found.flags == {"rw", "nosuid", "noexec"}
    assert found.total is not None
    assert shared_memory(str(tmp_path / "nowhere"), mounts).free is None


def test_notes_say_what_is_not_promised() -> None:
    odd = PipelineTable("p1", EngineTable("/m", [0], kind="sglang", python="/bin/sh"), TrainerTable([0], command=["sh"]))
    notes = "\n".join(picture(Config([odd], HostTable(virtual=2)), machine(gpus(2)), {}).notes)
    for words in (
        "kind sglang are unmeasured",
        "command is unmeasured",
        "never rolls out while it trains",
        "nobody may hold: 1",
    ):
        assert words in notes


def test_what_runs_is_named_by_its_whole_path() -> None:
    engine = EngineTable("/m", [0, 1, 2, 3], kind="sglang", python="/opt/sglang/bin/python", tp=2, slots=8, context=4096, kv_tokens=32768)
    mine = PipelineTable("p1", engine, TrainerTable([0], command=["/opt/train/bin/python", "train.py", "--name", "a b"], steps=200))
    assert printed(Config([mine], HostTable(gpus="auto")), picture(Config([mine], HostTable(gpus="auto")), machine(gpus(4)), {}))[1:4] == [
        "            how many             what                                            with",
        "p1/engine   2 engines of 2 GPUs  /opt/sglang/bin/python -m sglang.launch_server  8 slots, context 4096 tokens, KV pool 32768 tokens",
        "p1/trainer  1 rank               /opt/train/bin/python train.py --name 'a b'     200 steps",
    ]


def test_what_is_dropped_is_told_once() -> None:
    config = Config(QUICKSTART.pipeline, HostTable(virtual=4))
    some = Machine(gpus(4), None, None, {"PATH": "/bin", "WANDB_MODE": "offline", "SHLVL": "1"})
    lines = [line for line in printed(config, picture(config, some, {})) if "variables" in line or "dropped" in line]
    assert [line.split("  ")[-1].strip() for line in lines] == ["PATH", "WANDB_MODE", "PATH WANDB_MODE", "SHLVL"]


def test_the_callers_pythonpath_is_not_passed_on_in_silence() -> None:
    outer = {"PATH": "/bin", "TRAINSHED_OUTER_PYTHONPATH": "/src/megatron"}

    def notes(trainer: TrainerTable) -> str:
        config = Config([PipelineTable("p1", EngineTable(TINY, [1], context=64), trainer)], HostTable(virtual=2))
        found = picture(config, Machine(gpus(2), None, None, outer), {})
        assert not any("TRAINSHED_OUTER_PYTHONPATH" in variables.dropped for variables in found.variables)
        return "\n".join(found.notes)

    assert "PYTHONPATH of this shell (/src/megatron) is not passed on" in notes(TrainerTable([0], command=["/bin/sh"]))
    assert "PYTHONPATH" not in notes(TrainerTable([0], command=["/bin/sh"], env={"PYTHONPATH": "/src"}))
    assert "PYTHONPATH" not in notes(TrainerTable([0], entry="a:b"))


def test_a_pool_that_does_not_fit_is_said_to_be_the_reason() -> None:
    engine = EngineTable("/m", [0], kind="sglang", python="/s", slots=64, context=32768, kv_tokens=64 * 32768)
    config = Config([PipelineTable("p1", engine, TrainerTable([1], command=["/bin/sh"]))], HostTable(gpus="auto"))
    found = picture(config, machine(gpus(2, 24 * GIB)), {"p1": ModelSize(3 * GIB, 2 * 28 * 1024)})
    assert not found.fits
    assert any("KV pool (2097152 tokens, 56.0 GiB on each GPU) is larger than the weights" in note for note in found.notes)


def test_the_size_of_a_model_on_disk(tmp_path: Path) -> None:
    assert model_size(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}')
    assert model_size(tmp_path) == ModelSize(1000, 2 * 4 * 2 * 2 * 16)
    (tmp_path / "config.json").write_text("{")
    assert model_size(tmp_path) == ModelSize(1000, None)


def test_mistakes_are_printed_one_a_line_however_hostile() -> None:
    out = io.StringIO()
    view.show_mistakes([Mistake("a.toml", "host.x", '"\x1b[31m[bold]\n"', "is bad", "Do better.", 3)], Console(file=out, width=40))
    assert out.getvalue().splitlines() == ['a.toml:3: host.x = "[bold]\\n": is bad. Do better.', "1 mistake; nothing was started."]


def test_a_chat_template_that_does_not_compile_is_a_note(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "chat_template.jinja").write_text("{% generation %}{{ x }}{% endgeneration %}")
    config = Config([pipeline("p1", [0], [0], model=str(model))], HostTable(virtual=1))
    loaded = Loaded(config, Path("quickstart.toml"), "quickstart", b"")
    assert not any("template" in note for note in view.look(loaded).notes)
    (model / "chat_template.jinja").write_text("{% for x in y %}\n{{ x }")
    (note,) = [note for note in view.look(loaded).notes if "template" in note]
    assert note.startswith("p1: its chat template does not compile, so requests for chats will be refused")
    assert "chat_template.jinja, line 2" in note
