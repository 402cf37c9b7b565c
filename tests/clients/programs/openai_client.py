"""OpenAI's own client: chats whole and streamed, a round with a tool, responses, completions."""

import json
import os

import openai

client = openai.OpenAI(max_retries=0)
MODEL = client.models.list().data[0].id
assert client.models.retrieve(MODEL).id == MODEL
USER = {"role": "user", "content": "q"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
STRICT = {**TOOL, "function": {**TOOL["function"], "strict": True}}

if os.environ["SERVES"] == "tools":
    call = client.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL], max_tokens=200).choices[0]
    assert call.finish_reason == "tool_calls", call
    (made,) = call.message.tool_calls
    assert json.loads(made.function.arguments) == {"a": 1}
    history = [USER, call.message.model_dump(), {"role": "tool", "tool_call_id": made.id, "content": "42"}]
    assert (
        client.chat.completions.create(model=MODEL, messages=history, tools=[TOOL], max_tokens=200).choices[0].message.content
        == "It is 42."
    )
    with client.chat.completions.stream(model=MODEL, messages=[USER], tools=[STRICT], max_tokens=200) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.name == "look"
    answer = client.responses.create(
        model=MODEL, input="q", max_output_tokens=200, tools=[{"type": "function", "name": "look", "parameters": {}, "strict": False}]
    )
    assert answer.output[-1].type == "function_call", answer
else:
    whole = client.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=6, seed=1, logprobs=True, n=2, extra_body={"return_token_ids": True}
    )
    assert len(whole.choices) == 2
    assert len(whole.choices[0].token_ids) == len(whole.choices[0].logprobs.content)
    events = list(
        client.chat.completions.create(
            model=MODEL, messages=[USER], max_tokens=6, seed=1, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == whole.choices[0].message.content
    assert events[-1].usage.completion_tokens == len(whole.choices[0].token_ids)
    completion = client.completions.create(model=MODEL, prompt="q", max_tokens=3, echo=True, logprobs=0)
    assert completion.choices[0].text.startswith("q")
    assert client.responses.create(model=MODEL, input="q", max_output_tokens=4).usage.output_tokens <= 4
print("ok")
