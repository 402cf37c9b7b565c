"""inspect: a task with a tool, to its end."""

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def look():
    async def execute(a: int) -> str:
        """Looks.

        Args:
            a: where
        """
        return "42"

    return execute


tools = os.environ["SERVES"] == "tools"
model = get_model("openai-api/trainshed/p1", base_url=f"{os.environ['GATEWAY']}/v1", api_key=os.environ["OPENAI_API_KEY"])
task = Task(
    dataset=[Sample(input="q", target="42")],
    solver=[use_tools(look()), generate()] if tools else [generate()],
    scorer=includes(),
    config=GenerateConfig(max_tokens=200 if tools else 5),
)
(log,) = eval(task, model=model, display="none", log_dir=os.environ["TMPDIR"])
assert log.status == "success", log.error
assert not tools or log.results.scores[0].metrics["accuracy"].value == 1.0, log.results
print("ok")
