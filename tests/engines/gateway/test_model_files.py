"""Prompts are those that transformers makes of the same folder: tokens, templates of every kind, tools, earlier calls and reasoning."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from engines.gateway.model_files import chat_template, parsers
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.text import Text

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "where"}}, "required": ["a"]},
        },
    }
]
CALL = {"id": "call_00001", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "longthought"},
    {"role": "tool", "tool_call_id": "call_00001", "name": "look", "content": "42"},
    {"role": "user", "content": "x"},
]


def folder(directory: Path, template: object = None, **more: Any) -> Path:
    """A model's files: one token a byte, special tokens, something put around a text, a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({**config, **({} if template is None else {"chat_template": template}), **more})
    )
    (directory / "config.json").write_text(json.dumps({"eos_token_id": 257, "vocab_size": 300}))
    return directory


def library(directory: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(directory), local_files_only=True)


def ids(made: Any) -> list[int]:
    return list(made["input_ids"])


@pytest.mark.parametrize(
    "stored",
    [
        {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 16},
                "direction": "Left",
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
                "pad_to_multiple_of": None,
            }
        },
    ],
    ids=["truncation", "padding"],
)
@pytest.mark.parametrize("length", [3, 50, 5000])
def test_what_is_stored_in_tokenizer_json_neither_cuts_nor_pads(tmp_path: Path, stored: dict[str, Any], length: int) -> None:
    path = folder(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stored}))
    text = "0123456789" * (length // 10) + "012"[: length % 10]
    assert Text(tmp_path).encode(text) == library(tmp_path).encode(text)
    assert len(Text(tmp_path).encode(text)) == length + 1


def test_special_tokens_come_once(tmp_path: Path) -> None:
    text = Text(folder(tmp_path, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"))
    assert text.encode("ab") == library(tmp_path).encode("ab")
    assert text.encode("ab")[0] == 256
    assert text.chat([{"role": "user", "content": "ab"}], {}) == [256, *text.encode("ab", special=False)]
    assert text.eos == {257}


def test_a_token_that_ends_the_answer_is_none_of_its_text(tmp_path: Path) -> None:
    text = Text(folder(tmp_path))
    made = [*text.encode("ab", special=False), 257]
    reason = {"type": "stop", "matched": 257}
    assert text.answer(made, reason, {"skip_special_tokens": False}) == "ab"
    assert text.answer(made, reason, {"skip_special_tokens": False, "no_stop_trim": True}) == "ab<eos>"


TEMPLATES = {
    "plain": "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
    "generation": "{% for m in messages %}{% if m['role'] == 'assistant' %}a:{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}u:{{ m['content'] }}{% endif %}{% endfor %}a:",
    "calls": "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}{% endif %}{% endfor %}[assistant]",
    "variables": "{{ mood | default('none') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja", "by name"])
def test_prompts_are_those_of_transformers(tmp_path: Path, name: str, where: str) -> None:
    source: Any = TEMPLATES[name]
    if where == "by name":
        source = [{"name": "default", "template": TEMPLATES[name]}, {"name": "tool_use", "template": "T" + TEMPLATES[name]}]
    folder(tmp_path, None if where == "chat_template.jinja" else source)
    if where == "chat_template.jinja":
        (tmp_path / "chat_template.jinja").write_text(source)
    text, own = Text(tmp_path), library(tmp_path)
    for messages in (HISTORY[:2], HISTORY):
        for tools in (None, TOOLS):
            for variables in ({}, {"mood": "good"}):
                expected = ids(own.apply_chat_template(parsed(messages), tools=tools, add_generation_prompt=True, **variables))
                assert text.chat(messages, variables, tools=tools) == expected


def parsed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as SGLang gives them to a template: arguments are objects, and no content is null."""
    made = json.loads(json.dumps(messages))
    for message in made:
        message["content"] = "" if message["content"] is None else message["content"]
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return list(made)


def test_calls_and_reasoning_of_earlier_turns_are_in_the_prompt(tmp_path: Path) -> None:
    text = Text(folder(tmp_path, TEMPLATES["calls"]))
    assert (
        text.decode(text.chat(HISTORY, {})) == '[system]s[user]q[assistant]<call>look({"a": 1})<think>longthought[tool]42[user]x[assistant]'
    )


def test_the_last_message_can_be_continued(tmp_path: Path) -> None:
    text = Text(folder(tmp_path, TEMPLATES["plain"].replace("{{ m['content'] }}", "{{ m['content'] }}<|im_end|>")))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "begin"}]
    made = text.chat(messages, {}, add_generation_prompt=False, continue_final_message=True)
    assert text.decode(made, skip_special=False) == "user:q<|im_end|>assistant:begin"


def test_parts_are_joined_where_a_template_knows_none_and_passed_on_where_it_does(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert (text := Text(folder(tmp_path, TEMPLATES["plain"]))).decode(text.chat(messages, {})) == "user:a ba:"
    reads = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
    assert (text := Text(folder(tmp_path, reads))).decode(text.chat(messages, {})) == "<a><b>"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": 3},
        {"content": "a"},
        {"role": "user", "content": "a", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "look", "arguments": "[1]"}}]},
    ],
)
def test_what_cannot_be_put_into_a_prompt_is_refused(tmp_path: Path, message: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"messages\[0\]"):
        Text(folder(tmp_path, TEMPLATES["calls"])).chat([message], {})


def test_a_template_that_does_not_compile_costs_a_chat_and_nothing_else(tmp_path: Path) -> None:
    text = Text(folder(tmp_path, "{% for m in messages %}{{ m.content }"))
    assert text.encode("ab") == [256, *text.encode("ab", special=False)]
    with pytest.raises(RequestError, match="chat template"):
        text.chat([{"role": "user", "content": "ab"}], {})
    (problem,) = chat_template.problems(tmp_path)
    assert "tokenizer_config.json" in problem
    assert chat_template.problems(folder(tmp_path, TEMPLATES["generation"])) == []


def trl_templates() -> Iterator[Path]:
    """Those of TRL, where bin/clients has made its environment."""
    if root := os.environ.get("TRAINSHED_CLIENTS"):
        yield from sorted(Path(root).glob("lib/python3*/site-packages/trl/chat_templates/*.jinja"))


@pytest.mark.real
@pytest.mark.parametrize("path", list(trl_templates()), ids=lambda path: path.stem)
def test_prompts_of_trls_templates_are_those_of_transformers(tmp_path: Path, path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(path.read_text())
    text, own = Text(tmp_path), library(tmp_path)
    assert chat_template.problems(tmp_path) == []
    compared = 0
    for messages in (HISTORY[1:2], HISTORY[:2], HISTORY[1:], HISTORY):
        for tools in (None, TOOLS):
            for options in ({"add_generation_prompt": True}, {"add_generation_prompt": False}):
                try:
                    expected = own.apply_chat_template(parsed(messages), tools=tools, tokenize=False, **options)
                except Exception:
                    with pytest.raises(RequestError):
                        text.chat(messages, {}, tools=tools, **options)
                    continue
                compared += 1
                assert text.decode_all(text.chat(messages, {}, tools=tools, **options)) == expected
    assert compared


def test_the_parsers_are_guessed_from_the_template() -> None:
    qwen3 = "<tool_call>{{ x }}</tool_call><think>{{ y }}</think>{% if enable_thinking %}{% endif %}"
    assert (parsers.guess_tool_parser(qwen3), parsers.guess_reasoning_parser(qwen3)) == ("qwen25", "qwen3")
    assert parsers.guess_tool_parser("<tool_call><function=f><parameter=p>") == "qwen3_coder"
    assert parsers.guess_tool_parser("{% for m in messages %}{{ m.content }}{% endfor %}") is None
    assert parsers.guess_tool_parser(None) is None


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "inside", "reasoning", "rest"),
    [
        ("<think>\nab</think>\n\ncd", False, "\nab", "\n\ncd"),
        ("ab</think>cd", True, "ab", "cd"),
        ("ab", True, "ab", ""),
        ("plain", False, "", "plain"),
        ("a<b", False, "", "a<b"),
        ("<thin", False, "", "<thin"),
        ("<think>ab</thi", False, "ab</thi", ""),
        ("<think>ab<tool_call>{}", False, "ab", "<tool_call>{}"),
        ("", False, "", ""),
    ],
)
def test_reasoning_is_cut_out_in_pieces_as_in_one(answer: str, inside: bool, reasoning: str, rest: str, size: int) -> None:
    stream = parsers.ReasoningStream(parsers.PLAIN["qwen3"], inside=inside)
    pieces = [stream.push(answer[at : at + size]) for at in range(0, len(answer), size)] + [stream.push("", last=True)]
    assert ("".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces)) == (reasoning, rest)
