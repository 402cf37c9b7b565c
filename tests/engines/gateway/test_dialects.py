"""Chats in other dialects: OpenAI's responses by its own client, Anthropic's messages over HTTP; whole and streamed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from engines.gateway.routes.agents import messages_api, responses_api
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.text import Text
from tests.harness.agent_model import CALL, TOOL, agent_model, says
from tests.harness.gateway_box import KEY, box
from tests.harness.scripted_engine import ScriptedEngine

WRITTEN = f"<think>hm</think>I look.\n{CALL}"
FUNCTION = {"type": "function", "name": "look", "parameters": TOOL["function"]["parameters"]}  # type: ignore[index]
ITEMS: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "c1", "output": "42"},
]
BLOCKS: list[Any] = [
    {"role": "user", "content": "q"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": 1}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "42"}]}]},
]
PROMPT = '[system]s[user]q[assistant]I look.<tool_call>\n{"a": 1}\n</tool_call><think>hm</think>[tool]42[assistant]'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_model(tmp_path_factory.mktemp("model"))


def shown(prompt: str) -> str:
    return prompt[prompt.index("[system]") :]


def test_responses(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine(says(model, WRITTEN)) as engine:
            await gateway.route(engine)
            asked: dict[str, Any] = {"model": "p1", "instructions": "s", "input": ITEMS, "tools": [FUNCTION], "max_output_tokens": 300}
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
                made = await client.responses.create(**asked)
                assert shown(Text(model).decode_all(engine.bodies[-1]["input_ids"])) == PROMPT
                events = [event async for event in await client.responses.create(**asked, stream=True)]
                short = await client.responses.create(model="p1", input="q", max_output_tokens=3)
            for answer in (made, events[-1].response):
                assert answer.status == "completed"
                assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
                reasoning, message, call = answer.output
                assert (reasoning.content[0].text, message.content[0].text) == ("hm", "I look.")
                assert (call.name, json.loads(call.arguments)) == ("look", {"a": 1})
                assert answer.usage.output_tokens == len(WRITTEN) + 1
            assert events[0].type == "response.created"
            assert [event.sequence_number for event in events] == list(range(len(events)))
            assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "I look."
            assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")

    asyncio.run(play())


async def events_of(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    made, name = [], ""
    async for line in response.content:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            made.append(json.loads(line[6:]))
            assert made[-1]["type"] == name
    return made


def test_messages(model: Path, tmp_path: Path) -> None:
    tool = {"name": "look", "input_schema": FUNCTION["parameters"]}
    asked: dict[str, Any] = {
        "model": "p1",
        "system": [{"type": "text", "text": "s"}],
        "messages": BLOCKS,
        "tools": [tool],
        "max_tokens": 300,
    }

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine(says(model, WRITTEN)) as engine:
            await gateway.route(engine)
            headers = {"X-Api-Key": KEY, "anthropic-version": "2023-06-01"}
            async with aiohttp.ClientSession(base_url=gateway.url, headers=headers) as session:
                async with session.post("/v1/messages", json=asked) as response:
                    assert response.status == 200, await response.text()
                    made = await response.json()
                prompt = Text(model).decode_all(engine.bodies[-1]["input_ids"])
                assert shown(prompt) == PROMPT
                async with session.post("/v1/messages", json={**asked, "stream": True}) as response:
                    events = await events_of(response)
                async with session.post("/v1/messages/count_tokens", json=asked) as response:
                    assert await response.json() == {"input_tokens": len(prompt)}
                async with session.post("/v1/messages", json={**asked, "tools": None, "max_tokens": 2}) as response:
                    assert (await response.json())["stop_reason"] == "max_tokens"
            thinking, text, call = made["content"]
            assert (thinking["thinking"], text["text"], call["name"], call["input"]) == ("hm", "I look.", "look", {"a": 1})
            assert made["stop_reason"] == "tool_use"
            assert made["usage"] == {"input_tokens": len(prompt), "output_tokens": len(WRITTEN) + 1}
            blocks: dict[int, dict[str, Any]] = {}
            for event in events:
                if event["type"] == "content_block_start":
                    blocks[event["index"]] = {"type": event["content_block"]["type"], "said": ""}
                elif event["type"] == "content_block_delta":
                    delta = event["delta"]
                    blocks[event["index"]]["said"] += delta.get("thinking") or delta.get("text") or delta.get("partial_json") or ""
            assert [(block["type"], block["said"]) for _, block in sorted(blocks.items())] == [
                ("thinking", "hm"),
                ("text", "I look."),
                ("tool_use", '{"a": 1}'),
            ]
            assert sum(event["type"] == "content_block_stop" for event in events) == 3
            assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
            assert events[-2]["delta"]["stop_reason"] == "tool_use"

    asyncio.run(play())


@pytest.mark.parametrize(
    "body",
    [
        {"input": "q", "previous_response_id": "resp_1"},
        {"input": "q", "truncation": "auto"},
        {"input": "q", "background": True},
        {"input": "q", "tools": [{"type": "web_search"}]},
        {"input": [{"type": "input_image"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": []},
        {"input": "q", "text": {"format": {"type": "grammar"}}},
    ],
)
def test_responses_refuse_what_they_cannot_honour(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        responses_api.chat_of(bytearray(json.dumps(body).encode()))


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "q"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": "q"}], "mcp_servers": [{}]},
        {"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"messages": [{"role": "user", "content": "q"}], "tool_choice": {"type": "sometimes"}},
    ],
)
def test_messages_refuse_what_they_cannot_honour(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        messages_api.chat_of(bytearray(json.dumps(body).encode()))
