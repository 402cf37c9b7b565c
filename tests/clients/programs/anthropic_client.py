"""Anthropic's own client: a round with a tool, whole and streamed."""

import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["GATEWAY"], api_key=os.environ["OPENAI_API_KEY"], max_retries=0)
ASKED = {"model": "p1", "max_tokens": 200, "messages": [{"role": "user", "content": "q"}]}
if os.environ["SERVES"] == "tools":
    ASKED["tools"] = [{"name": "look", "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}]
    made = client.messages.create(**ASKED)
    assert made.stop_reason == "tool_use", made
    with client.messages.stream(**ASKED) as stream:
        last = stream.get_final_message()
    for message in (made, last):
        assert (message.content[-1].name, message.content[-1].input) == ("look", {"a": 1})
    result = {"type": "tool_result", "tool_use_id": made.content[-1].id, "content": "42"}
    history = [*ASKED["messages"], {"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**ASKED, "messages": history}).content[0].text == "It is 42."
    assert client.messages.count_tokens(model="p1", messages=history).input_tokens > 10
else:
    made = client.messages.create(**{**ASKED, "max_tokens": 4})
    assert made.usage.output_tokens <= 4
print("ok")
