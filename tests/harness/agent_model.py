"""A model folder for tests of agents (text only, no weights), and what a scripted engine says in its place."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engines.gateway.routes.text import Text
from tests.harness.scripted_engine import Script

TEMPLATE = (
    "{% for t in tools or [] %}<tool>{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function.arguments | tojson }}\n</tool_call>{% endfor %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if think %}<think>\n{% endif %}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'
EOS = 256


def agent_model(directory: Path) -> Path:
    """Write the files of text: one token a byte, and a template with tools and reasoning. Returns the folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": TEMPLATE}))
    (directory / "config.json").write_text(json.dumps({"eos_token_id": EOS, "vocab_size": 300, "max_position_embeddings": 512}))
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.25, "top_k": 7, "top_p": 0.5, "eos_token_id": EOS}))
    return directory


def says(model: Path, text: str, **more: Any) -> Script:
    """Return what makes a scripted engine answer so, whatever it is asked."""
    return Script(says=Text(model).encode(text), eos=[EOS], **more)
