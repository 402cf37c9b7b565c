"""What the trainer publishes has the names of the model's files, in the order of the state: also for a mixture of experts."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.harness.sglang.models import dense, moe
from tests.harness.tiny_model import make_tiny_model
from trainers import weights
from trainers.grpo.train import as_in_files


@pytest.mark.parametrize("make", [dense, moe, make_tiny_model])
def test_the_names_are_those_of_the_files(make: object, tmp_path: Path) -> None:
    assert callable(make)
    folder = make(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    named = as_in_files(model)
    assert set(named) - {"lm_head.weight"} == weights.layout_of(folder).tensors.keys() - {"lm_head.weight"}
    assert next(iter(named)) == next(iter(model.state_dict()))
    for name, tensor in model.state_dict().items():
        if name in named:
            assert torch.equal(named[name], tensor)
