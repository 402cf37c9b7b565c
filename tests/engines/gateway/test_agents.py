"""Agents behind a real gateway process: tools, earlier calls, reasoning, token ids; whole and streamed, by OpenAI's own client."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from engines.gateway.routes import fields
from engines.gateway.routes.agents import field_table
from engines.gateway.routes.agents.chat_bodies import Chat
from engines.gateway.routes.openai_bodies import Completion
from engines.gateway.routes.text import Text
from tests.harness.agent_model import CALL, EOS, TOOL, agent_model, says
from tests.harness.gateway_box import KEY, Box, box
from tests.harness.scripted_engine import ScriptedEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_model(tmp_path_factory.mktemp("model"))


def client(gateway: Box) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)


USER: list[Any] = [{"role": "user", "content": "q"}]
CASES = [
    # what the model writes, tools, variables -> content, reasoning, arguments of the calls, finish reason
    ("plain", "hello" * 20, False, {}, "hello" * 20, None, [], "stop"),
    ("a call", CALL, True, {}, "", None, ['{"a": 1}'], "tool_calls"),
    ("text and two calls", f"I look.\n{CALL}\n{CALL}", True, {}, "I look.", None, ['{"a": 1}', '{"a": 1}'], "tool_calls"),
    ("no call", "a <b> and <tool", True, {}, "a <b> and <tool", None, [], "stop"),
    ("reasoning", "<think>hm</think>yes", False, {}, "yes", "hm", [], "stop"),
    ("reasoning that the prompt has begun", "hm</think>yes", False, {"think": True}, "yes", "hm", [], "stop"),
    ("reasoning and a call", f"<think>hm</think>{CALL}", True, {}, "", "hm", ['{"a": 1}'], "tool_calls"),
    ("a call in reasoning", f"<think>hm{CALL}", True, {}, "", "hm", ['{"a": 1}'], "tool_calls"),
    ("a tool that is not there", CALL.replace("look", "leap"), True, {}, "", None, [], "stop"),
]


@pytest.mark.parametrize("interval", [1, 5])
@pytest.mark.parametrize(
    ("written", "tools", "variables", "content", "reasoning", "calls", "reason"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_answers_are_read_whole_and_streamed(
    model: Path,
    tmp_path: Path,
    interval: int,
    written: str,
    tools: bool,
    variables: Any,
    content: str,
    reasoning: Any,
    calls: Any,
    reason: str,
) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine(says(model, written, interval=interval, delay=0.001)) as engine:
            await gateway.route(engine)
            asked: dict[str, Any] = {
                "model": "p1",
                "messages": USER,
                "max_tokens": 300,
                "extra_body": {"chat_template_kwargs": variables, "stream_interval": interval},
            }
            if tools:
                asked["tools"] = [TOOL]
            async with client(gateway) as asking:
                whole = (await asking.chat.completions.create(**asked)).choices[0]
                events = [event async for event in await asking.chat.completions.create(**asked, stream=True) if event.choices]
            message = whole.message
            assert (message.content, getattr(message, "reasoning_content", None), whole.finish_reason) == (content, reasoning, reason)
            assert [(call.function.name, call.function.arguments) for call in message.tool_calls or []] == [("look", one) for one in calls]
            deltas = [event.choices[0].delta for event in events]
            assert "".join(delta.content or "" for delta in deltas) == content
            assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == (reasoning or "")
            made = [call for delta in deltas for call in delta.tool_calls or []]
            assert [(call.index, call.function.name, call.function.arguments) for call in made if call.function] == [
                (index, "look", one) for index, one in enumerate(calls)
            ]
            assert len({call.id for call in [*made, *(message.tool_calls or [])]}) == 2 * len(calls)
            assert events[-1].choices[0].finish_reason == reason
            if written.startswith("hello"):
                assert sum(bool(delta.content) for delta in deltas) > 1, "it did not come in pieces"

    asyncio.run(play())


async def prompts(session: aiohttp.ClientSession, engine: ScriptedEngine, bodies: Sequence[dict[str, Any]], model: Path) -> list[str]:
    """The prompts that the engine gets for these chats."""
    text, made = Text(model), []
    for body in bodies:
        async with session.post("/v1/chat/completions", json={"max_tokens": 1, **body}) as response:
            assert response.status == 200, await response.text()
        made.append(text.decode_all(engine.bodies[-1]["input_ids"]))
    return made


def test_earlier_calls_and_tools_are_in_the_prompt_and_none_shows_none(model: Path, tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    history = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            bodies = [
                {"messages": history},
                {"messages": USER, "tools": [TOOL]},
                {"messages": USER, "tools": [TOOL], "tool_choice": "none"},
                {"messages": [*USER, {"role": "assistant", "content": "be"}], "continue_final_message": True},
                {"messages": USER, "add_generation_prompt": False},
                {"messages": USER, "chat_template_kwargs": {"think": True}},
            ]
            made = await prompts(session, engine, bodies, model)
            assert made == [
                '[user]q[assistant]<tool_call>\n{"a": 1}\n</tool_call><think>hm</think>[tool]42[assistant]',
                f"<tool>{json.dumps(TOOL)}[user]q[assistant]",
                "[user]q[assistant]",
                "[user]q[assistant]be",
                "[user]q",
                "[user]q[assistant]<think>\n",
            ]
            async with session.post("/tokenize", json={"messages": USER, "tools": [TOOL]}) as response:
                assert (await response.json())["tokens"] == Text(model).encode(made[1])

    asyncio.run(play())


def test_a_forced_call_is_a_schema_and_is_read_as_one(model: Path, tmp_path: Path) -> None:
    written = '[{"name": "look", "parameters": {"a": 2}}]'

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, _), ScriptedEngine(says(model, written)) as engine:
            await gateway.route(engine)
            for choice in ("required", {"type": "function", "function": {"name": "look"}}):
                async with client(gateway) as asking:
                    made = await asking.chat.completions.create(model="p1", messages=USER, max_tokens=300, tools=[TOOL], tool_choice=choice)  # type: ignore[call-overload]
                (call,) = made.choices[0].message.tool_calls
                assert (call.function.name, json.loads(call.function.arguments), made.choices[0].finish_reason) == (
                    "look",
                    {"a": 2},
                    "tool_calls",
                )
                schema = json.loads(engine.bodies[-1]["sampling_params"]["json_schema"])
                assert schema["items"]["properties"]["name"]["enum"] == ["look"]
                assert schema["items"]["properties"]["parameters"] == TOOL["function"]["parameters"]  # type: ignore[index]
                assert schema.get("maxItems") == (None if choice == "required" else 1)
            assert engine.parsed == 0

    asyncio.run(play())


BAD_TOOLS: list[dict[str, Any]] = [
    {"tools": [{"type": "function"}]},
    {"tools": [TOOL], "tool_choice": "sometimes"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "leap"}}},
    {"tool_choice": "required"},
    {"tools": [{"type": "retrieval", "function": {"name": "look"}}]},
    {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
    {"tools": [{"type": "function", "function": {"name": "look", "parameters": "x"}}]},
    {"functions": [{"name": "look"}]},
    {"session_params": {"id": "1"}},
    {"documents": [{"text": "a"}]},
    {"chat_template": "{{ 1 }}"},
    {"chat_template_kwargs": {"messages": []}},
    {"continue_final_message": True},
    {"best_of": 3},
    {"guided_json": {"type": "object"}},
]


def test_what_would_change_an_answer_and_cannot_be_honoured_is_refused(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            for body in BAD_TOOLS:
                async with session.post("/v1/chat/completions", json={"messages": USER, **body}) as response:
                    assert response.status == 400, body
            harmless = {
                "user": "u",
                "functions": [],
                "suffix": None,
                "best_of": 1,
                "modalities": ["text"],
                "store": True,
                "prediction": None,
            }
            async with session.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 1, **harmless}) as response:
                assert response.status == 200

    asyncio.run(play())


def test_tools_of_a_model_whose_format_is_not_known_are_refused_until_a_parser_is_named(tmp_path: Path, model: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tokenizer.json", "config.json"):
        (other / name).write_bytes((model / name).read_bytes())
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")

    async def play() -> None:
        body = {"messages": USER, "tools": [TOOL], "max_tokens": 300}
        async with box(other, tmp_path) as (_, session), session.post("/v1/chat/completions", json=body) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "no_tool_parser")
        async with box(other, tmp_path, "--tool-parser", "hermes") as (gateway, session), ScriptedEngine(says(other, CALL)) as engine:
            await gateway.route(engine)
            async with session.post("/v1/chat/completions", json=body) as response:
                (choice,) = (await response.json())["choices"]
            assert choice["message"]["tool_calls"][0]["function"]["name"] == "look"
            assert engine.parsed == 1

    asyncio.run(play())


def test_calls_are_parsed_although_the_engine_that_made_them_has_gone(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            box(model, tmp_path) as (gateway, session),
            ScriptedEngine(says(model, CALL, delay=0.005)) as one,
            ScriptedEngine() as two,
        ):
            await gateway.route(one, 0)
            work = asyncio.create_task(session.post("/v1/chat/completions", json={"messages": USER, "tools": [TOOL], "max_tokens": 300}))
            await gateway.busy(0)
            two.script = says(model, CALL)
            await gateway.route(two, 1)
            await gateway.lost(0)
            await one.die()
            async with await work as response:
                assert response.status == 200, await response.text()
            assert two.parsed == 1

    asyncio.run(play())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_token_ids_and_log_probs_come_on_every_route(model: Path, tmp_path: Path, route: str, stream: bool) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(says(model, f"ab{CALL}")) as engine:
            await gateway.route(engine)
            body: dict[str, Any] = {"return_token_ids": True, "stream": stream, "max_tokens": 200}
            body |= {"prompt": "q", "logprobs": 1} if route == "/v1/completions" else {"messages": USER, "tools": [TOOL], "logprobs": True}
            ids: list[int] = []
            prompt: list[int] = []
            count = 0
            async with session.post(route, json=body) as response:
                assert response.status == 200, await response.text()
                lines = [line[6:] async for line in response.content if line.startswith(b"data: {")] if stream else [await response.read()]
            for line in lines:
                made = json.loads(line)
                for choice in made["choices"]:
                    ids += choice["token_ids"]
                    prompt += choice.get("prompt_token_ids") or []
                    logprobs = choice["logprobs"] or {}
                    count += len(logprobs.get("content") or logprobs.get("token_logprobs") or [])
                    assert choice.get("response_token_ids", choice["token_ids"]) == choice["token_ids"]
            assert ids == [*Text(model).encode(f"ab{CALL}"), EOS]
            assert count == len(ids)
            assert prompt == engine.bodies[-1]["input_ids"]
            if not stream:
                assert made["prompt_token_ids"] == prompt

    asyncio.run(play())


def test_echo_repeats_the_prompt_with_its_log_probs(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine(says(model, "cd")) as engine:
            await gateway.route(engine)
            body = {"prompt": ["ab", "xyz"], "max_tokens": 2, "echo": True, "logprobs": 2, "n": 2}
            async with session.post("/v1/completions", json=body) as response:
                made = await response.json()
            assert [choice["text"] for choice in made["choices"]] == ["abcd", "abcd", "xyzcd", "xyzcd"]
            for choice, length in zip(made["choices"], (4, 4, 5, 5), strict=True):
                logprobs = choice["logprobs"]
                assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {length}
                assert "".join(logprobs["tokens"]) == choice["text"]
                assert logprobs["token_logprobs"][0] is None
                assert logprobs["token_logprobs"][1] == -0.125
            assert made["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}, "each prompt is counted once"
            async with session.post("/v1/completions", json={**body, "stream": True}) as response:
                assert response.status == 400
            async with session.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2, "echo": True, "stream": True}) as response:
                lines = [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: {")]
            assert "".join(line["choices"][0]["text"] for line in lines) == "abcd"

    asyncio.run(play())


def test_a_chat_is_sampled_as_the_model_wants_where_the_request_is_silent(model: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            for body, expected in (
                ({}, {"temperature": 0.25, "top_k": 7, "top_p": 0.5}),
                ({"temperature": 1.0, "top_p": 1.0}, {"temperature": 1.0, "top_k": 7, "top_p": 1.0}),
            ):
                await prompts(session, engine, [{"messages": USER, **body}], model)
                params = engine.bodies[-1]["sampling_params"]
                assert {name: params[name] for name in expected} == expected
            async with session.post("/v1/completions", json={"prompt": "q", "max_tokens": 1}) as response:
                assert response.status == 200
            assert "temperature" not in engine.bodies[-1]["sampling_params"], "as SGLang: completions have OpenAI's defaults"

    asyncio.run(play())


def test_fields_of_sglang_reach_the_engine(model: Path, tmp_path: Path) -> None:
    body = {
        "stop_regex": "c{3}",
        "lora_path": "a",
        "custom_params": {"x": 1},
        "return_hidden_states": True,
        "response_format": {"type": "structural_tag", "structures": [], "triggers": ["<"]},
    }

    async def play() -> None:
        async with box(model, tmp_path) as (gateway, session), ScriptedEngine() as engine:
            await gateway.route(engine)
            for route, asked in (("/v1/completions", {"prompt": "q"}), ("/v1/chat/completions", {"messages": USER})):
                async with session.post(route, json={**asked, **body, "max_tokens": 2}) as response:
                    assert response.status == 200, await response.text()
                    assert (await response.json())["choices"][0]["hidden_states"]
                sent = engine.bodies[-1]
                assert (sent["lora_path"], sent["return_hidden_states"]) == ("a", True)
                assert {name: sent["sampling_params"][name] for name in ("stop_regex", "custom_params")} == {
                    "stop_regex": "c{3}",
                    "custom_params": {"x": 1},
                }
                assert json.loads(sent["sampling_params"]["structural_tag"])["triggers"] == ["<"]

    asyncio.run(play())


def test_the_table_of_fields_in_the_docs_is_printed_from_the_code() -> None:
    """python -m engines.gateway.routes.agents.field_table"""
    page = (Path(__file__).resolve().parents[3] / "docs/gateway.md").read_text()
    assert f"<!-- fields -->\n{field_table.table()}\n<!-- end of fields -->" in page
    assert not set(fields.REFUSED) & (set(Completion.__struct_fields__) | set(Chat.__struct_fields__) | set(fields.NEUTRAL))
