"""This module finds how large a model on disk is, as far as its files say so. It never raises for a broken model."""

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from supervisor.config.schema.findings import ModelSize

_CONFIG_LIMIT: Final = 1 << 20
_LENGTHS: Final = ("max_position_embeddings", "max_sequence_length", "seq_length", "max_seq_len", "n_positions")
_TEXT: Final = ("text_config", "llm_config", "thinker_config")
"""A model of several kinds of input keeps the part that writes at one of these keys."""


class _ModelConfig(msgspec.Struct, frozen=True):
    """The part of a Hugging Face config.json that tells the size of a KV cache."""

    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    kv_lora_rank: int | None = None


def model_size(folder: Path) -> ModelSize | None:
    """None when the folder has no readable safetensors file."""
    try:
        weights = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".safetensors"))
    except OSError:
        return None
    return ModelSize(weights, _kv_token(folder / "config.json")) if weights else None


def model_context(folder: Path) -> int | None:
    """Tokens of the longest sequence that a model was made for; None where its configuration does not say it. Stretched positions
    (`rope_scaling`) are not counted: a model is taken at its word."""
    try:
        with (folder / "config.json").open("rb") as file:
            config = msgspec.json.decode(file.read(_CONFIG_LIMIT), type=dict[str, Any])
    except (OSError, ValueError, RecursionError):
        return None
    for part in (config, *(config.get(name) for name in _TEXT)):
        for key in _LENGTHS:
            if isinstance(part, dict) and type(found := part.get(key)) is int and found > 0:
                return min(found, 2**31)
    return None


def model_quantised(folder: Path) -> str | None:
    """Returns how the weights of a model are quantised (`fp8`, `awq`), as its configuration says it; None where it says nothing of it."""
    try:
        with (folder / "config.json").open("rb") as file:
            found = msgspec.json.decode(file.read(_CONFIG_LIMIT), type=dict[str, Any]).get("quantization_config")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return str(found.get("quant_method", "an unknown method")) if isinstance(found, dict) and found else None


def _kv_token(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            config = msgspec.json.decode(file.read(_CONFIG_LIMIT), type=_ModelConfig)
    except (OSError, ValueError, RecursionError):
        return None
    if config.kv_lora_rank is not None:  # latent attention: much less, and these numbers do not say it
        return None
    if min(config.num_hidden_layers, config.num_attention_heads, config.hidden_size) < 1:
        return None
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    return 2 * 4 * config.num_hidden_layers * (config.num_key_value_heads or config.num_attention_heads) * head
