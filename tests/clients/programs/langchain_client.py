"""langchain: bind_tools, and a chat without them."""

import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def look(a: int) -> str:
    """Looks."""
    return "42"


model = ChatOpenAI(model="p1", base_url=f"{os.environ['GATEWAY']}/v1", max_retries=0, max_tokens=200)
if os.environ["SERVES"] == "tools":
    tooled = model.bind_tools([look])
    history = [HumanMessage("q")]
    made = tooled.invoke(history)
    assert [(call["name"], call["args"]) for call in made.tool_calls] == [("look", {"a": 1})], made
    history += [made, ToolMessage(look.invoke(made.tool_calls[0]["args"]), tool_call_id=made.tool_calls[0]["id"])]
    assert tooled.invoke(history).content == "It is 42."
    streamed = None
    for piece in tooled.stream([HumanMessage("q")]):
        streamed = piece if streamed is None else streamed + piece
    assert streamed.tool_calls[0]["args"] == {"a": 1}
else:
    assert model.bind(max_tokens=4).invoke("q").usage_metadata["output_tokens"] <= 4
print("ok")
