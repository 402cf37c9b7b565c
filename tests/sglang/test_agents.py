"""What agents need of an engine: it parses calls and reasoning as the gateway expects; and OpenAI's routes answer through the gateway as directly."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.harness.answers import alike
from tests.harness.gateway_box import KEY, box
from tests.harness.sglang.served import Served
from trainers.protocol import gateway_messages

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]
CALL = '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>'
TEXTS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("plain", "plain", []),
    (CALL, "", [("look", '{"a": 1}')]),
    (f"I look.\n{CALL}\n{CALL}", "I look.", [("look", '{"a": 1}')] * 2),
    (CALL.replace("look", "leap"), "", []),
]


@pytest.mark.parametrize("parser", ["qwen25", "hermes"])
async def test_an_engine_parses_calls(engine: Served, parser: str) -> None:
    if engine.kind == "scripted":
        pytest.skip("the scripted engine parses nothing")
    broken = "<tool_call>\n{no json}\n</tool_call>"
    for text, rest, calls in [*TEXTS, (broken, "" if parser == "qwen25" else broken, [])]:
        made = engine.post("/parse_function_call", {"text": text, "tools": TOOLS, "tool_call_parser": parser})
        assert (made["normal_text"].strip(), [(call["name"], call["parameters"]) for call in made["calls"]]) == (rest, calls), text
    status, _ = engine.call("POST", "/parse_function_call", {"text": "x", "tools": TOOLS, "tool_call_parser": "no such parser"})
    assert status >= 400


async def test_an_engine_separates_reasoning(engine: Served) -> None:
    if engine.kind == "scripted":
        pytest.skip("the scripted engine parses nothing")
    for text, parser, reasoning, rest in (
        ("<think>\nhm</think>\nyes", "qwen3", "\nhm", "\nyes"),
        ("yes", "qwen3", "", "yes"),
        ("hm</think>yes", "deepseek-r1", "hm", "yes"),
        ("hm", "deepseek-r1", "hm", ""),
    ):
        made = engine.post("/separate_reasoning", {"text": text, "reasoning_parser": parser})
        assert (made["reasoning_text"], made["text"]) == (reasoning, rest), text


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0.0, "logprobs": 2, "echo": True}),
    (
        "/v1/completions",
        {"prompt": [[5, 6], [7, 8, 9]], "max_tokens": 4, "temperature": 0.0, "n": 2, "logprobs": 1, "return_token_ids": True},
    ),
    ("/v1/completions", {"prompt": "1+2=", "max_tokens": 4, "temperature": 0.0, "echo": True}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "1+2="}], "max_tokens": 5, "temperature": 0.0, "logprobs": True, "top_logprobs": 3},
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "1+2="}], "max_tokens": 5, "temperature": 0.0, "return_token_ids": True, "n": 2},
    ),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1+"}], "max_tokens": 5, "temperature": 0.0, "stop_regex": "[0-9]"}),
]
OURS = ("spans", "token_ids", "text_offset", "refusal", "hidden_states", "sglext", "reasoning_content", "meta_info", "tool_calls")
"""Fields of a choice that only one of the two has, or of which ours says more."""


async def test_openais_routes_answer_as_the_engine_does(engine: Served, tmp_path: Path) -> None:
    if not engine.kind.startswith("sglang"):
        pytest.skip("our own engines know fewer options")
    async with aiohttp.ClientSession() as session, box(engine.first, tmp_path) as (gateway, _):
        await gateway.order(gateway_messages.Route, engine=0, incarnation=1, url=engine.url, key=engine.key, slots=4, version=0)
        different = []
        for route, body in ASKED:
            made = []
            for url, key in ((engine.url, engine.key), (gateway.url, KEY)):
                headers = {"Authorization": f"Bearer {key}"}
                async with session.post(url + route, json={"model": "p1", **body}, headers=headers) as response:
                    assert response.status == 200, (url, route, body, await response.text())
                    made.append(await response.json())
            direct, got = (_comparable(one) for one in made)
            if not alike(got, direct):
                different.append((route, body, got, direct))
        assert not different, different[:2]


def _comparable(answer: dict[str, Any]) -> dict[str, Any]:
    choices = []
    for choice in answer["choices"]:
        kept = {name: value for name, value in choice.items() if name not in OURS and value is not None}
        kept.setdefault("prompt_token_ids", None)
        for part in ("message", "logprobs"):
            if isinstance(kept.get(part), dict):
                kept[part] = {name: value for name, value in kept[part].items() if name not in OURS}
        choices.append(kept)
    usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return {"choices": choices, "usage": usage}
