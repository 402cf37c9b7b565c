"""A model small enough for a test: Qwen2 from a config, seeded, with a tokenizer of one token a character."""

from pathlib import Path
from typing import Any

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz:=+ -.,?!"


def make_tiny_model(directory: Path, *, seed: int = 0, scale: float = 1.0, **config: Any) -> Path:
    """Write config, tokenizer and seeded weights (multiplied by `scale`) in Hugging Face layout; returns `directory`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM

    names = ["<pad>", "<eos>", "<unk>", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    fast.save_pretrained(directory)
    options: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**{**options, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(directory)
    return directory
