"""This module reads what a model's config.json and generation_config.json say: end tokens, sizes, and how it wants to be sampled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SAMPLED: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""These of generation_config.json are the defaults of a chat, where SGLang (0.5.23) runs with `--sampling-defaults model`, its default."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`end_tokens` end an answer. `positions`: tokens that the model was made for; `vocabulary`: rows of its embedding; None: it does not say."""

    end_tokens: frozenset[int]
    positions: int | None
    vocabulary: int | None
    sampling: Mapping[str, float]


def read(model: Path) -> Settings:
    """Raises OSError or ValueError for files that are there and cannot be read."""
    config, generation = _json(model / "config.json"), _json(model / "generation_config.json")
    named = [generation.get("eos_token_id"), config.get("eos_token_id")]
    ids = {item for value in named for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    sampling = {name: value for name in SAMPLED if isinstance(value := generation.get(name), int | float) and not isinstance(value, bool)}
    return Settings(frozenset(ids), _size(config, "max_position_embeddings"), _size(config, "vocab_size"), sampling)


def _size(config: Mapping[str, Any], name: str) -> int | None:
    """Return a size of the model, which those of several modalities keep with their text part."""
    text = config.get("text_config")
    size = config.get(name, text.get(name) if isinstance(text, dict) else None)
    return size if isinstance(size, int) and size > 0 else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
