"""This module makes a model on the spot: a Qwen2 of 78,400 parameters with a tokenizer of 64 characters.

`make = "trainers.grpo.tiny:make"` in a TOML file. Every dimension is a power of two: with others, kernels choose other last bits
for other batch shapes, and a shared run would not be bit-identical to one alone.
"""

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trainers.grpo.settings import BadOption
from trainers.grpo.tasks import TASKS

SPECIAL: Final = ("<pad>", "<eos>", "<unk>")
CHARACTERS: Final = string.digits + string.ascii_lowercase + ":=+-*/.,?!()[]{}<>@#$%&^~"
"""Printable ASCII without space: byte-level tokenizers, which some readers make of any Qwen2, map these to themselves."""
VOCABULARY: Final = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
SIZES: Final = ("hidden", "heads", "kv_heads", "intermediate", "context")
CHAT_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def make(
    directory: Path,
    *,
    task: str = "parity",
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    context: int = 64,
) -> None:
    """Writes model, configuration and tokenizer in Hugging Face layout into the empty folder `directory`.

    Weights are random, drawn from `seed`. Raises ValueError for a task that does not exist or a size that is no power of two.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    refuse({"task": task, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "intermediate": intermediate, "context": context})
    config = Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=VOCABULARY["<pad>"],
        eos_token_id=VOCABULARY["<eos>"],
        bos_token_id=None,
        dtype=torch.float32,
    )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    model: Any = Qwen2ForCausalLM(config)
    model.float().save_pretrained(directory)
    write_tokenizer(directory, context)


def refuse(options: Mapping[str, Any]) -> None:
    """Raises BadOption for the first of these options of `make` that it cannot carry out; imports nothing heavy."""
    for name, value in options.items():
        if name == "task" and value not in TASKS:
            raise BadOption(name, value, "is none of", choices=tuple(TASKS))
        if name in SIZES and (value < 1 or value & (value - 1)):
            raise BadOption(name, value, "is no power of two")


def write_tokenizer(directory: Path, context: int) -> None:
    """Writes a tokenizer with one token for each character; a character that is not in the vocabulary is `<unk>`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    plain = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], unk_token="<unk>"))
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    plain.decoder = decoders.Fuse()
    plain.save(str(directory / "tokenizer.json"))
    # By hand: transformers 5 writes a class name that older readers (SGLang's) do not know.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
