import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.grpo import tiny


def test_the_model_reloads(tmp_path: Path) -> None:
    tiny.make(tmp_path, seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 78_400
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 64 == len(tiny.VOCABULARY)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = list(range(3, 64))
    for text in ("e:0z", tiny.CHARACTERS):
        assert tokenizer(text)["input_ids"] == plain.encode(text).ids == [tiny.VOCABULARY[character] for character in text]
    assert tokenizer.decode(ids) == plain.decode(ids) == tiny.CHARACTERS
    assert tokenizer.decode([1, *ids], skip_special_tokens=True) == plain.decode([1, *ids]) == tiny.CHARACTERS
    assert plain.encode("\u202e").ids == [tiny.VOCABULARY["<unk>"]]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "o:"}], tokenize=False) == "o:"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_the_seed_makes_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny.make(tmp_path / name, seed=seed, layers=1)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_sizes_that_are_no_power_of_two_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden = 96"):
        tiny.make(tmp_path, hidden=96)
    with pytest.raises(ValueError, match="parity, class"):
        tiny.make(tmp_path, task="x")
