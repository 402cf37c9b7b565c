"""Tiny models that SGLang serves: a dense one (Qwen2) and a mixture of experts (Qwen3-MoE), sharp enough that greedy answers are clear.

From the command line: `python -m tests.harness.sglang.models DIR` makes `DIR/dense`, `DIR/moe`.
"""

import sys
from pathlib import Path
from typing import Any

from trainers.grpo.tiny import VOCABULARY, write_tokenizer

CONTEXT = 256
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "pad_token_id": VOCABULARY["<pad>"],
    "eos_token_id": VOCABULARY["<eos>"],
    "bos_token_id": None,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}


def dense(directory: Path, *, seed: int = 0, scale: float = 4.0) -> Path:
    """A Qwen2 in float32, its weights multiplied by `scale`; returns `directory`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return _save(Qwen2ForCausalLM, Qwen2Config(**SIZES), directory, seed, scale)


def moe(directory: Path, *, seed: int = 0, scale: float = 4.0) -> Path:
    """A Qwen3-MoE of 8 experts, two for a token, in float32."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return _save(Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **EXPERTS), directory, seed, scale)


def _save(kind: Any, config: Any, directory: Path, seed: int, scale: float) -> Path:
    import torch

    torch.manual_seed(seed)
    model = kind(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(directory)
    write_tokenizer(directory, CONTEXT)
    return directory


if __name__ == "__main__":
    for name, make in (("dense", dense), ("moe", moe)):
        print(make(Path(sys.argv[1]) / name))
