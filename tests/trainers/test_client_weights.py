"""What the client does with tensors: publishing and residence."""

import errno
import json
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
from safetensors.torch import load_file
from trainshed.virtual_gpu import memfd_name

from tests.harness.fake_supervisor import FakeSupervisor


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
