"""A script that knows nothing of Trainshed but a URL and a key: it asks the pipeline's gateway, which speaks OpenAI's dialect.

No rollout has to be opened: its requests are demand by themselves. It could be an evaluation, a data generator, or a trainer in
any language. Any HTTP client will do; this is the standard library's. With the `openai` package (not part of Trainshed):

    client = openai.OpenAI(base_url=os.environ["TRAINSHED_URL"] + "/v1", timeout=600)  # its key: OPENAI_API_KEY
    answer = client.chat.completions.create(model="any", messages=[{"role": "user", "content": "e:"}], max_tokens=8)
"""

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

QUESTIONS = ["e:", "o:"] * 16
URL = os.environ["TRAINSHED_URL"] + "/v1/chat/completions"
KEY = os.environ.get("TRAINSHED_API_KEY", "none")  # also in OPENAI_API_KEY; not there with `auth = false`
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine, whatever http_proxy says


def ask(question: str) -> str:
    body = {"model": "any", "messages": [{"role": "user", "content": question}], "max_tokens": 8, "temperature": 1.0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(URL, json.dumps(body).encode(), headers)
    with DIRECT.open(request, timeout=600) as answer:  # it waits until an engine is there
        return json.load(answer)["choices"][0]["message"]["content"] or ""


with ThreadPoolExecutor(len(QUESTIONS)) as together:
    answers = list(together.map(ask, QUESTIONS))
for question, answer in zip(QUESTIONS, answers):  # noqa: B905 - it may be an old Python
    print(f"{question} {answer!r}")
print(f"{len(answers)} answers")
