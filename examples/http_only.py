"""A script that knows nothing of Trainshed but a URL: it asks the pipeline's gateway with the `openai` package.

No rollout has to be opened: its requests are demand by themselves. It could be an evaluation, a data generator, or a trainer in
any language.
"""

import asyncio
import os

from openai import AsyncOpenAI

QUESTIONS = ["e:", "o:"] * 16


async def main() -> None:
    async with AsyncOpenAI(base_url=os.environ["TRAINSHED_URL"] + "/v1", api_key="none", timeout=600) as client:

        async def ask(question: str) -> str:
            message = {"role": "user", "content": question}
            answer = await client.chat.completions.create(model="any", messages=[message], max_tokens=8, temperature=1.0)
            return answer.choices[0].message.content or ""

        answers = await asyncio.gather(*map(ask, QUESTIONS))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question} {answer!r}")
    print(f"{len(answers)} answers")


if __name__ == "__main__":
    asyncio.run(main())
