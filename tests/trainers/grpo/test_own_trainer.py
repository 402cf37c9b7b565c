"""The example of a user's own script, run as it is: processes, the client, nothing else of ours."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.harness.fake_supervisor import FakeSupervisor, environment
from tests.harness.sampler import Sampler
from trainers.grpo import tiny
from trainers.user_code import torchrun_variables

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "own_trainer.py"
SEEN = """
import runpy, sys, torch
save = torch.save
torch.save = lambda *given: (print("saved by", sys.argv[2], flush=True), save(*given))
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs the script and says which rank saves."""


@pytest.mark.slow
def test_it_learns_and_resumes_and_is_short(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 60
    tiny.make(tmp_path / "model")
    sampler = Sampler(tmp_path / "model")
    with sampler.gateway() as gateway:
        rewards = []
        for steps_done, steps in ((0, 3), (3, 5)):
            path = str(tmp_path / f"{steps_done - 1}.pt") if steps_done else None
            with FakeSupervisor(tmp_path, url=gateway.url, steps=steps, steps_done=steps_done, checkpoint_path=path) as supervisor:
                sampler.supervisor = supervisor
                supervisor.version = steps_done
                command = [sys.executable, "-P", os.fspath(SCRIPT)]
                subprocess.run(command, env=environment(supervisor, 0), pass_fds=[supervisor.descriptor()], timeout=60, check=True)
                rewards += [report.metrics["reward"] for report in supervisor.reports]
    assert len(rewards) == 5
    assert rewards[-1] > rewards[0] + 0.15, rewards


def weights_after_a_step(folder: Path, world_size: int) -> tuple[dict[str, Tensor], list[list[str]]]:
    """What is published last, and what each rank said of its saving."""
    tiny.make(folder / "model")
    sampler = Sampler(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with sampler.gateway() as gateway, FakeSupervisor(folder, world_size=world_size, url=gateway.url, steps=1) as supervisor:
        sampler.supervisor = supervisor
        ranks = [
            subprocess.Popen(
                [sys.executable, "-P", "-c", SEEN, os.fspath(SCRIPT), str(rank)],
                env={**environment(supervisor, rank), **torchrun_variables(rank, world_size, port), "GLOO_SOCKET_IFNAME": "lo"},
                pass_fds=[supervisor.descriptor(rank)], stdout=subprocess.PIPE, text=True,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        said = [process.communicate(timeout=90)[0].splitlines() for process in ranks]
        assert [process.returncode for process in ranks] == [0] * world_size
        return load_file(supervisor.versions[-1] / "model.safetensors"), said


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_and_only_the_first_saves(tmp_path: Path) -> None:
    """A share each, gradients averaged: the same weights, but for the order of sums."""
    one, _ = weights_after_a_step(tmp_path / "one", 1)
    two, said = weights_after_a_step(tmp_path / "two", 2)
    assert said == [["saved by 0"], []]
    assert one.keys() == two.keys()
    assert max(float((two[name] - tensor).abs().mean()) for name, tensor in one.items()) < 1e-4, "one step moves them by up to 0.04"
