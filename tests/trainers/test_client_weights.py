"""What the client does with tensors: publishing and residence."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import trainshed
from safetensors.torch import load_file, save_file
from trainshed.virtual_gpu import memfd_name

from tests.harness.fake_supervisor import FakeSupervisor
from trainers import weights


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"tie_word_embeddings": true}')
    (path / "tokenizer.json").write_text('{"ä": 1}', "utf-8")
    (path / "model.safetensors").write_text("not copied")
    (path / "model.safetensors.index.json").write_text("{}")
    (path / "notes.md").write_text("not copied")
    (path / "sub").mkdir()
    return path


def test_a_snapshot_is_what_safetensors_reads(tmp_path: Path, model_dir: Path) -> None:
    shared = torch.randn(4, 4)
    state = {
        "b.bf16": torch.randn(3).to(torch.bfloat16),
        "a.scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "transposed": torch.arange(6, dtype=torch.int32).view(2, 3).T,
        "flags": torch.tensor([True, False]),
        "embed": torch.nn.Parameter(shared),
        "lm_head": shared,
        "half of it": shared[2:],
    }
    with FakeSupervisor(tmp_path, model=str(model_dir)) as supervisor:
        pipeline = supervisor.connect()
        assert pipeline.publish(lambda: state) == 1
        assert pipeline.publish(state) == 2
        folder = supervisor.versions[0]
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "tokenizer.json").read_text("utf-8") == '{"ä": 1}'
    found = load_file(folder / "model.safetensors")
    assert set(found) == set(state) - {"lm_head"}
    for name, tensor in found.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def test_untied_tensors_that_are_one_are_written_twice(tmp_path: Path, model_dir: Path) -> None:
    (model_dir / "config.json").write_text('{"tie_word_embeddings": false}')
    shared = torch.ones(2)
    trainshed.write_snapshot(tmp_path / "s", {"a": shared, "b": shared}, model_dir)
    assert set(load_file(tmp_path / "s" / "model.safetensors")) == {"a", "b"}


def test_no_room_is_typed_and_frees_the_other_ranks(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    caught: list[trainshed.PublishFailed] = []

    def script(rank: int) -> None:
        with pytest.raises(trainshed.PublishFailed) as failed:
            supervisor.connect(rank).publish({"w": torch.ones(3)})
        caught.append(failed.value)

    with FakeSupervisor(tmp_path, world_size=2, model=str(model_dir)) as supervisor:
        threads = [threading.Thread(target=script, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(type(error).__name__ for error in caught) == ["NoRoom", "PublishFailed"]
        assert list(supervisor.weights.iterdir()) == []


BAD: list[dict[str, Any]] = [{}, {"w": 3}, {"w": torch.ones(2, dtype=torch.complex64)}]


@pytest.mark.parametrize("state", BAD)
def test_what_cannot_be_published_leaves_the_old_version(tmp_path: Path, model_dir: Path, state: dict[str, Any]) -> None:
    with FakeSupervisor(tmp_path, model=str(model_dir)) as supervisor:
        pipeline = supervisor.connect()
        with pytest.raises(trainshed.PublishFailed):
            pipeline.publish(state)
        assert list(supervisor.weights.iterdir()) == []
        assert pipeline.publish({"w": torch.ones(2)}) == 1


def test_restore_publishes_only_after_a_restart(tmp_path: Path, model_dir: Path) -> None:
    state = {"w": torch.ones(2)}
    cases: list[tuple[dict[str, Any], int]] = [({}, 0), ({"steps_done": 1}, 1), ({"version": 4}, 5), ({"checkpoint_path": "/c"}, 1)]
    for index, (welcome, version) in enumerate(cases):
        with FakeSupervisor(tmp_path / str(index), model=str(model_dir), **welcome) as supervisor:
            assert supervisor.connect().restore(lambda: state) == version


def test_residents_are_on_the_gpu_inside_a_lease_only(tmp_path: Path) -> None:
    layer = torch.nn.Linear(64, 64)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.0)
    with FakeSupervisor(tmp_path, gpus=("virtual:7",), roles=("init", "train", "reference")) as supervisor:
        pipeline = supervisor.connect()
        assert held() == 0
        with pipeline.lease("init"):
            pipeline.resident(layer, optimizer)
            assert held() > 0
        assert held() == 0
        assert torch.equal(layer.weight, before)
        with pytest.raises(ZeroDivisionError), pipeline.lease("train"):  # noqa: PT012  a whole lease is meant
            layer(torch.ones(1, 64)).sum().backward()
            optimizer.step()
            assert held() > 0
            _ = 1 / 0
        assert held() == 0
        with pipeline.lease("train") as lease:
            lease.become("reference")
            assert held() > 0
            lease.become("critic")
            assert held() == 0
        assert held() == 0
        assert optimizer.state[layer.weight]["exp_avg"].sum() != 0


def held() -> int:
    """Bytes of virtual GPU 7 in this process."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == f"/memfd:{memfd_name(7)} (deleted)":
                total += os.stat(f"/proc/self/fd/{number}").st_blocks * 512
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return total


def test_the_client_file_alone_says_that_residents_need_its_folder(tmp_path: Path) -> None:
    shutil.copyfile(trainshed.__file__, tmp_path / "trainshed.py")
    program = "import trainshed; trainshed._Residents((), 'cuda:0').add([object()])"
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, check=False, capture_output=True, timeout=60)
    assert b"PipelineError: resident() needs the whole folder trainshed" in done.stderr


def test_the_header_is_padded(tmp_path: Path, model_dir: Path) -> None:
    trainshed.write_snapshot(tmp_path / "s", {"a": torch.ones(3)}, model_dir)
    data = (tmp_path / "s" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 64 == 0
    assert json.loads(data[8 : 8 + length])["a"] == {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


# -- what does not fit


class Wrapped(torch.nn.Module):
    """A model of two layers and an output layer tied to its embedding, under the names that its files have."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 4)
        self.up = torch.nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Wrapped]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = Wrapped()
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder, model


def published(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a version, as every reader of Hugging Face's layout finds them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    files = json.loads(index.read_text())["weight_map"]
    found = {name: load_file(folder / file)[name] for name, file in files.items()}
    assert {entry.name for entry in folder.glob("*.safetensors")} == set(files.values())
    return found


def refused(pipeline: trainshed.Pipeline, state: Any, code: str, words: str, **how: Any) -> None:
    with pytest.raises(trainshed.PublishFailed, match=words) as caught:
        pipeline.publish(state, **how)
    assert caught.value.code == code


def prefixed(state: dict[str, torch.Tensor], front: str, layer: str = "") -> dict[str, torch.Tensor]:
    return {front + name.replace("up.", f"up.{layer}"): tensor for name, tensor in state.items()}


WRAPPINGS = [
    ("module.", ""),
    ("_orig_mod.", ""),
    ("module._orig_mod.", ""),
    ("_orig_mod.module.", ""),
    ("", "_orig_mod."),
    ("_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module."),
    ("base_model.model.", ""),
    ("base_model.model.", "base_layer."),
    ("module.base_model.model.", "_orig_mod.base_layer."),
]


@pytest.mark.parametrize(("front", "layer"), WRAPPINGS)
def test_what_wrappers_put_into_names_is_left_out_and_said_once(
    tmp_path: Path, made: tuple[Path, Wrapped], front: str, layer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, model = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        for version in (1, 2):
            assert pipeline.publish(prefixed(model.state_dict(), front, layer)) == version
        found = published(supervisor.versions[1])
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    said = capfd.readouterr().err
    assert said.count("publish takes") == 1
    assert f"for {next(name for name in prefixed(model.state_dict(), front, layer) if name not in found)}" in said


def test_real_wrappers_publish_as_they_are(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, model = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        for wrapped in (torch.compile(model), torch.nn.DataParallel(model)):
            assert any(name not in model.state_dict() for name in wrapped.state_dict())
            pipeline.publish(wrapped.state_dict)
            assert published(supervisor.versions[-1]).keys() == model.state_dict().keys()


def test_names_that_the_models_files_have_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    state = {"module.a": torch.ones(2), "a": torch.zeros(2), "lora_b": torch.ones(1)}
    save_file(state, folder / "model.safetensors")
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        supervisor.connect().publish(state)
        assert published(supervisor.versions[0]).keys() == state.keys()


ADAPTED: list[dict[str, torch.Tensor]] = [
    {"base_model.model.up.lora_A.default.weight": torch.ones(1)},
    {"up.lora_B.weight": torch.ones(1)},
    {"base_model.model.up.base_layer.weight": torch.ones(4, 4), "base_model.model.up.ia3_l.default": torch.ones(4)},
    {"base_model.model.embed.modules_to_save.default.weight": torch.ones(8, 4)},
]


@pytest.mark.parametrize("adapted", ADAPTED)
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_refused_until_it_is_merged(
    tmp_path: Path, made: tuple[Path, Wrapped], adapted: dict[str, torch.Tensor], alone: bool
) -> None:
    folder, model = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        whole = {} if alone else prefixed(model.state_dict(), "base_model.model.")
        refused(pipeline, whole | adapted, "unmerged_adapter", r"merge_and_unload", partial=alone)
        assert list(supervisor.weights.iterdir()) == []


UNFIT: list[tuple[str, torch.Tensor, str]] = [
    ("up.weight", torch.zeros(4, 5), r"1 of 4 tensors do not fit .*'up\.weight' is F32 \[4, 5\], and F32 \[4, 4\]"),
    ("up.weight", torch.zeros(16), "flattened"),
    ("up.weight", torch.zeros(4, 4, dtype=torch.int8), r"I8 \[4, 4\]"),
    ("count", torch.zeros(1), r"'count' is F32 \[1\], and I64 \[1\]"),
]


@pytest.mark.parametrize(("name", "tensor", "words"), UNFIT)
def test_what_does_not_fit_is_refused_and_the_old_version_stays(
    tmp_path: Path, made: tuple[Path, Wrapped], name: str, tensor: torch.Tensor, words: str
) -> None:
    folder, model = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        assert pipeline.publish(model.state_dict) == 1
        refused(pipeline, model.state_dict() | {name: tensor}, "does_not_fit", words)
        refused(pipeline, {f"decoder.{name}": tensor for name, tensor in model.state_dict().items()}, "does_not_fit", "another way")
        assert [entry.name for entry in supervisor.weights.iterdir()] == ["v1"]
        assert (
            pipeline.publish(
                {name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
            )
            == 2
        )


def test_the_failure_of_rank_0_is_told_to_every_rank(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, model = made
    caught: list[trainshed.PublishFailed] = []

    def script(rank: int) -> None:
        with pytest.raises(trainshed.PublishFailed) as failed:
            supervisor.connect(rank).publish(model.state_dict() | {"up.bias": torch.tensor([0.0, 1.0, float("nan"), 0.0])})
        caught.append(failed.value)

    with FakeSupervisor(tmp_path, world_size=2, model=str(folder)) as supervisor:
        threads = [threading.Thread(target=script, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert [(error.code, error.reason) for error in caught] == [("not_finite", caught[0].reason)] * 2
    assert caught[0].reason.startswith("up.bias ")


# -- sharded tensors, and such without memory


class Part(torch.Tensor):
    """As much of a DTensor as a publish sees: no address, and `full_tensor`."""

    def data_ptr(self) -> int:
        return 0

    def full_tensor(self) -> torch.Tensor:
        return self


def test_a_sharded_tensor_is_refused_by_name(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, model = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        part = torch.ones(4, 4).as_subclass(Part)
        refused(
            supervisor.connect(),
            model.state_dict() | {"up.weight": part},
            "sharded",
            r"up\.weight is a Part.*full_tensor\(\) on every rank",
        )


def test_a_real_dtensor_is(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    folder, model = made
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        part = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
            refused(supervisor.connect(), model.state_dict() | {"up.weight": part}, "sharded", r"up\.weight is a DTensor")
    finally:
        distributed.destroy_process_group()


class Nowhere(torch.Tensor):
    def data_ptr(self) -> int:
        return 0


def test_tensors_without_an_address_are_no_ties(tmp_path: Path, model_dir: Path) -> None:
    state = {name: torch.ones(2).as_subclass(Nowhere) for name in ("a", "b")}
    assert trainshed._untied(state, True).keys() == {"a", "b"}
    with pytest.raises(trainshed.PublishFailed, match="a is a Nowhere without memory of its own"):
        trainshed.write_snapshot(tmp_path / "s", state, model_dir)


def test_of_tied_tensors_the_embedding_is_written_whichever_comes_first(tmp_path: Path, model_dir: Path) -> None:
    shared = torch.ones(2)
    for number, names in enumerate((["lm_head.weight", "embed"], ["embed", "lm_head.weight"])):
        trainshed.write_snapshot(tmp_path / f"{number}", dict.fromkeys(names, shared), model_dir)
        assert set(load_file(tmp_path / f"{number}" / "model.safetensors")) == {"embed"}


# -- values


FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SMALL_FLOATS = [torch.float8_e5m2, torch.float8_e4m3fn]


def placed(values: torch.Tensor, value: float, where: int) -> torch.Tensor:
    changed = values.to(torch.float32)
    changed[where] = value
    return changed.to(values.dtype)


NOT_FINITE = [(dtype, float(value)) for dtype in (*FLOATS, *SMALL_FLOATS) for value in ("nan", "inf", "-inf")]
NOT_FINITE = [(dtype, value) for dtype, value in NOT_FINITE if dtype is not torch.float8_e4m3fn or math.isnan(value)]  # it has no infinity


@pytest.mark.parametrize(("dtype", "value"), NOT_FINITE, ids=str)
@pytest.mark.parametrize("with_torch", [True, False])
def test_values_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, model_dir: Path, dtype: torch.dtype, value: float, with_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainshed, "_PIECE", 256)
    values = torch.randn(1000).to(dtype)
    states = [{"w": torch.ones(3), "bad": placed(values, value, where)} for where in (0, 300, 999)]
    if not with_torch:
        monkeypatch.delitem(sys.modules, "torch")
    for number, state in enumerate(states):
        with pytest.raises(trainshed.PublishFailed, match=r"bad has values that are NaN or infinite") as caught:
            trainshed.write_snapshot(tmp_path / f"{number}", state, model_dir)
        assert caught.value.code == "not_finite"


@pytest.mark.parametrize("dtype", [*FLOATS, *SMALL_FLOATS, torch.int32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("with_torch", [True, False])
def test_every_finite_value_is_published(
    tmp_path: Path, model_dir: Path, dtype: torch.dtype, with_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest, whose sum would overflow, and for two bytes and less every value there is."""
    monkeypatch.setattr(trainshed, "_PIECE", 4096)
    if dtype.itemsize <= 2 and dtype.is_floating_point:
        integers = torch.int16 if dtype.itemsize == 2 else torch.int8
        values = torch.arange(-(2 ** (8 * dtype.itemsize - 1)), 2 ** (8 * dtype.itemsize - 1)).to(integers).view(dtype)
        values = values[torch.isfinite(values.to(torch.float32))]
    elif dtype.is_floating_point:
        values = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, 0.0] * 2000, dtype=dtype)
    else:
        values = torch.arange(10_000).to(dtype)
    if not with_torch:
        monkeypatch.delitem(sys.modules, "torch")
    trainshed.write_snapshot(tmp_path / "s", {"w": values}, model_dir)
    monkeypatch.undo()
    found = load_file(tmp_path / "s" / "model.safetensors")["w"]
    assert bytes(found.view(torch.uint8).numpy()) == bytes(values.view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_both_ways_of_looking_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any bytes at all, 64 values at a time."""
    generator = torch.Generator().manual_seed(7)
    data = torch.randint(0, 256, (2000, 64 * dtype.itemsize), dtype=torch.uint8, generator=generator)
    data[::2] &= 0x83 if dtype is torch.float16 else 0x7E  # half of them are finite
    seen = set()
    for row in data:
        values = row.view(dtype)
        kind = trainshed._DTYPES[str(dtype).split(".")[-1]]
        right = bool(torch.isfinite(values).all())
        seen.add(right)
        assert trainshed._finite(values, 0, 64, memoryview(row.numpy()), kind) is right
        with monkeypatch.context() as without:
            without.delitem(sys.modules, "torch")
            assert trainshed._finite(values, 0, 64, memoryview(row.numpy()), kind) is right
    assert seen == {True, False}


# -- a part, completed from the version before


def test_a_part_is_refused_unless_it_is_called_one(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, _ = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        refused(
            pipeline, {"up.bias": torch.ones(4)}, "incomplete", r"lacks 3 of the model's 4 tensors: 'count', 'embed\.weight', 'up\.weight';"
        )
        refused(
            pipeline, {"up.bais": torch.ones(4)}, "does_not_fit", r"up\.bais and 0 more are no tensors of the version before", partial=True
        )
        refused(pipeline, {"up.bias": torch.ones(5)}, "does_not_fit", r"F32 \[5\]", partial=True)
        assert list(supervisor.weights.iterdir()) == []


def test_a_part_is_completed_from_the_version_before(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, model = made
    right = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        parts: list[dict[str, torch.Tensor]] = [
            {"up.bias": torch.full((4,), 1.0)},
            {"up.bias": torch.full((4,), 2.0)},
            {"up.weight": torch.full((4, 4), 3.0), "embed.weight": torch.ones(8, 4)},
            {"count": torch.tensor([4])},
            {name: tensor + 5 for name, tensor in right.items()},
            {"module.up.bias": torch.full((4,), 6.0)},
        ]
        for number, part in enumerate(parts, 1):
            assert pipeline.publish(part, partial=True) == number
            right |= {name.removeprefix("module."): tensor for name, tensor in part.items()}
            found = published(supervisor.versions[-1])
            assert found.keys() == right.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in right.items()), number
            assert weights.layout_of(supervisor.versions[-1]) == weights.layout_of(folder)


def test_what_did_not_change_is_linked(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    """The same part each time, as a trainer of some layers has it: the rest takes no room again."""
    folder, _ = made
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        for _ in range(3):
            pipeline.publish({"up.bias": torch.ones(4)}, partial=True)
        second, third = (next(iter(version.glob("model-00002-*"))) for version in supervisor.versions[1:])
        assert second.stat().st_ino == third.stat().st_ino


def test_a_part_after_a_resume_is_completed_from_the_model(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, model = made
    with FakeSupervisor(tmp_path, model=str(folder), version=7) as supervisor:
        assert supervisor.connect().restore(lambda: {"up.bias": torch.ones(4)}, partial=True) == 8
        found = published(supervisor.versions[0])
    assert torch.equal(found["up.weight"], model.up.weight)
    assert torch.equal(found["up.bias"], torch.ones(4))


def test_a_part_of_a_tied_model_takes_no_old_output_layer(tmp_path: Path, made: tuple[Path, Wrapped]) -> None:
    folder, model = made
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    save_file({**model.state_dict(), "lm_head.weight": model.embed.weight.detach().clone()}, folder / "model.safetensors")
    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        supervisor.connect().publish({"embed.weight": torch.ones(8, 4)}, partial=True)
        assert published(supervisor.versions[0]).keys() == model.state_dict().keys()


def test_no_room_for_the_rest_leaves_nothing(tmp_path: Path, made: tuple[Path, Wrapped], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made
    calls: list[int] = []

    def full(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with FakeSupervisor(tmp_path, model=str(folder)) as supervisor:
        pipeline = supervisor.connect()
        monkeypatch.setattr(os, "posix_fallocate", full)
        refused(pipeline, {"up.bias": torch.ones(4)}, "no_room", "bytes for a snapshot", partial=True)
        assert list(supervisor.weights.iterdir()) == []
