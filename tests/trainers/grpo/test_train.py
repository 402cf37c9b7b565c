import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trainshed import RolloutRefused, Sample, launch

from tests.harness.fake_supervisor import FakeSupervisor
from tests.harness.sampler import Sampler
from trainers.grpo import checkpoint, tiny, train
from trainers.user_code import torchrun_variables

SMALL = {"prompts": 4, "group": 4, "minibatch": 8, "epochs": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny.make(path)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_here(directory: Path, model: Path, options: dict[str, Any], **welcome: Any) -> list[dict[str, Any]]:
    """One rank in this process; returns the lines of its metrics."""
    sampler = Sampler(model)
    with sampler.gateway() as gateway:
        supervisor = FakeSupervisor(directory, model=str(model), url=gateway.url, options=options, **welcome)
        sampler.supervisor = supervisor
        with supervisor:
            train.run(supervisor.connect())
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["parity", "class"])
def test_the_reward_rises(tmp_path: Path, model: Path, task: str) -> None:
    lines = train_here(tmp_path, model, {"task": task}, steps=4)
    rewards = [line["reward"] for line in lines]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["version"] for line in lines] == [1, 2, 3, 4]
    assert rewards[-1] > rewards[0] + 0.15, rewards


def test_a_resumed_run_is_bit_identical(tmp_path: Path, model: Path) -> None:
    whole = train_here(tmp_path / "whole", model, SMALL, steps=3)
    parts = tmp_path / "parts"
    train_here(parts, model, SMALL, steps=2)
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')  # it died here
    resumed = train_here(
        parts, model, SMALL, steps=3, steps_done=2, checkpoint_path=str(parts / "checkpoints" / "step-000001"), version=2,
    )  # fmt: skip
    for line in whole + resumed:
        del line["version"]
    assert resumed == whole


def test_a_kl_term_and_its_reference(tmp_path: Path, model: Path) -> None:
    plain = train_here(tmp_path / "a", model, SMALL, steps=1)
    held = train_here(tmp_path / "b", model, {**SMALL, "kl": 1.0}, steps=1)
    assert plain[0]["reward"] == held[0]["reward"]
    assert plain[0]["weights"] != held[0]["weights"]


def test_wrong_options_are_refused_before_anything_else(tmp_path: Path, model: Path) -> None:
    with FakeSupervisor(tmp_path, model=str(model), options={"nonsense": 1}) as supervisor:
        pipeline = supervisor.connect()
        with pytest.raises(ValueError, match=r"options\.nonsense"):
            train.run(pipeline)
        assert supervisor.tags() == ["hello"]


def test_a_stop_is_no_failure(tmp_path: Path, model: Path) -> None:
    with FakeSupervisor(tmp_path, model=str(model)) as supervisor:
        supervisor.refuse["open_rollout"] = "stopping"
        train.run(supervisor.connect())
    with FakeSupervisor(tmp_path, model=str(model)) as supervisor:
        supervisor.refuse["open_rollout"] = "no_engine"
        with pytest.raises(RolloutRefused):
            train.run(supervisor.connect())


@pytest.mark.slow
def test_two_ranks_are_bit_repeatable(tmp_path: Path, model: Path) -> None:
    """Real processes, gloo, one descriptor each; twice."""
    runs = []
    for name in ("a", "b"):
        sampler = Sampler(model)
        with sampler.gateway() as gateway:
            supervisor = FakeSupervisor(tmp_path / name, world_size=2, model=str(model), url=gateway.url, options=SMALL, steps=2)
            sampler.supervisor = supervisor
            with supervisor:
                processes = [_fork(supervisor, rank, port) for port in [_free_port()] for rank in range(2)]
                assert [_exit_code(process) for process in processes] == [0, 0]
        runs.append((tmp_path / name / "metrics.jsonl").read_text())
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == 2
    alone = train_here(tmp_path / "alone", model, SMALL, steps=2)
    # One rank adds up in another order: other last bits, the same numbers.
    assert [json.loads(line)["loss"] for line in runs[0].splitlines()] == pytest.approx([line["loss"] for line in alone], abs=1e-4)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _preloaded() -> Any:
    from multiprocess import context

    server: Any = context.ForkServerContext()
    server.set_forkserver_preload(["trainers.grpo.train"])
    return server


def _fork(supervisor: FakeSupervisor, rank: int, port: int) -> Any:
    context = _preloaded()
    descriptor = supervisor._theirs[rank]
    process = context.Process(target=_rank, args=(descriptor, torchrun_variables(rank, 2, port)))
    process.start()
    return process


def _rank(descriptor: socket.socket, environment: dict[str, str]) -> None:
    os.environ.update(environment, TRAINSHED_FD=str(descriptor.detach()), TRAINSHED_GPUS="virtual:0")
    launch.run("trainers.grpo:main")


def _exit_code(process: Any) -> int:
    process.join(60)
    if process.exitcode is None:
        process.kill()
        process.join()
    return int(process.exitcode)


def test_collate_by_hand() -> None:
    samples = [Sample(0, [5], [6, 7], [-0.1, -0.2], {}, [], ""), Sample(1, [5, 5], [8], [-0.3], {}, [], "")]
    batch = train.collate(samples, torch.tensor([1.5, float("nan")], dtype=torch.float64), "cpu")
    assert batch.tokens.tolist() == [[5, 6, 7], [5, 5, 8]]
    assert batch.mask.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    torch.testing.assert_close(batch.behaviour, torch.tensor([[-0.1, -0.2], [0.0, -0.3]]))
    assert batch.advantage.tolist() == [1.5, 0.0]


def test_a_checkpoint_appears_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    first = checkpoint.save(tmp_path / "c", 3, layer, optimizer)
    assert checkpoint.save(tmp_path / "c", 3, layer, optimizer) == first
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == ["step-000003"]
    other = torch.nn.Linear(2, 2)
    adam = torch.optim.AdamW(other.parameters(), lr=0.5)
    assert checkpoint.load(first, other, adam) == 3
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(adam.state[other.weight]["exp_avg"], optimizer.state[layer.weight]["exp_avg"])
    (first / checkpoint.FILE).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(checkpoint.CheckpointError, match="step-000003"):
        checkpoint.load(first, other, adam)
