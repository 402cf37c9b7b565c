"""litellm: a chat, a stream, a tool; and that an error of context is understood as one."""

import os

import litellm

ASKED = {
    "model": "openai/p1",
    "api_base": f"{os.environ['GATEWAY']}/v1",
    "messages": [{"role": "user", "content": "q"}],
    "max_tokens": 200,
    "num_retries": 0,
}
if os.environ["SERVES"] == "tools":
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    made = litellm.completion(**ASKED, tools=[tool])
    assert made.choices[0].message.tool_calls[0].function.name == "look", made
    pieces = list(litellm.completion(**ASKED, tools=[tool], stream=True))
    assert litellm.stream_chunk_builder(pieces).choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
else:
    assert litellm.completion(**{**ASKED, "max_tokens": 5}).usage.completion_tokens <= 5
    assert list(litellm.completion(**{**ASKED, "max_tokens": 5}, stream=True))
    try:
        litellm.completion(**{**ASKED, "messages": [{"role": "user", "content": "q" * 4000}]})
    except litellm.BadRequestError:
        pass
    else:
        raise AssertionError("a prompt beyond the context was answered")
print("ok")
