"""lm-eval: log-likelihoods of answers to choose from, by `echo` with log-probs."""

import os

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

model = LocalCompletionsAPI(
    base_url=f"{os.environ['GATEWAY']}/v1/completions",
    model="p1",
    tokenizer=os.environ["MODEL"],
    tokenizer_backend="huggingface",
    max_retries=1,
)
asked = [Instance("loglikelihood", {}, ("question ", answer), index) for index, answer in enumerate(("yes", "no"))]
made = model.loglikelihood(asked)
assert len(made) == 2
assert all(value < 0.0 for value, _ in made), made
print("ok")
