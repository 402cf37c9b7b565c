"""This module reads which models the embedded engine computes, and their tensors: `config.json` of a Hugging Face folder as numbers. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FAMILIES: Final = ("qwen2", "qwen3", "llama")


class UnsupportedModel(Exception):
    """The model in the folder is not one that this engine can compute; the operator must choose another or another engine kind."""


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Qwen2 / Qwen3 / Llama family: RMSNorm, rotary positions, grouped-query attention, gated SiLU."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    rope_theta: float
    tied: bool
    bias: bool  # on q, k and v
    head_norm: bool  # RMSNorm of each query and key head (Qwen3)
    positions: int  # longest context that the model was made for
    dtype: str
    eos: frozenset[int]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the snapshot by name, in the order in which they lie in the weights pool."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
            for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                shapes[f"{attention}.{name}.weight"] = (rows, self.hidden)
                if self.bias:
                    shapes[f"{attention}.{name}.bias"] = (rows,)
            shapes[f"{attention}.o_proj.weight"] = (self.hidden, queries)
            if self.head_norm:
                shapes[f"{attention}.q_norm.weight"] = shapes[f"{attention}.k_norm.weight"] = (self.head_dim,)
            shapes[f"{mlp}.gate_proj.weight"] = shapes[f"{mlp}.up_proj.weight"] = (self.intermediate, self.hidden)
            shapes[f"{mlp}.down_proj.weight"] = (self.hidden, self.intermediate)
            shapes[f"model.layers.{layer}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes


def read_architecture(folder: Path) -> Architecture:
    """Read the architecture that `config.json` in `folder` describes. Raises UnsupportedModel, OSError."""
    config = _json(folder / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(f"{folder}: model_type {family!r}; the embedded engine computes {', '.join(FAMILIES)}")
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise UnsupportedModel(f"{folder}: rope_type {rope_type!r}; the embedded engine computes only 'default'")
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        raise UnsupportedModel(f"{folder}: sliding-window attention; the embedded engine computes full attention only")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise UnsupportedModel(f"{folder}: only the silu activation without biases in the MLP is computed by the embedded engine")
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return Architecture(
            family=family,
            vocab=int(config["vocab_size"]),
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            tied=bool(config.get("tie_word_embeddings", False)),
            bias=family == "qwen2" or bool(config.get("attention_bias", False)),
            head_norm=family == "qwen3",
            positions=int(config.get("max_position_embeddings", 1 << 30)),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            eos=_eos(config) | _eos(_generation_config(folder)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedModel(f"{folder}/config.json does not describe a model: {type(error).__name__}: {error}") from error


def check_exact(architecture: Architecture, slots: int) -> list[str]:
    """Return why this model in this many slots would not be bit-exact on a CPU whatever a row's neighbours; nothing when it is.

    Measured rule: kernels handle the rows of a batch alike when there are a multiple of 4 of them and dimensions are powers of two.
    """
    problems = []
    if slots % 4 or slots < 4:
        problems.append(f"slots = {slots} is not a multiple of 4")
    dimensions = ("hidden", "heads", "kv_heads", "head_dim", "intermediate")
    for name in dimensions:
        value: int = getattr(architecture, name)
        if value < 1 or value & (value - 1):
            problems.append(f"{name} = {value} is not a power of two")
    if architecture.vocab % 16:
        problems.append(f"vocab = {architecture.vocab} is not a multiple of 16 (pad the embedding)")
    return problems


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return _json(path) if path.exists() else {}


def _eos(config: dict[str, Any]) -> frozenset[int]:
    value = config.get("eos_token_id")
    return frozenset([value] if isinstance(value, int) else [int(token) for token in value or ()])


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UnsupportedModel(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} is not a JSON object")
    return content
