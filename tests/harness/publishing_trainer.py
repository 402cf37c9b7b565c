"""A trainer for the tests: publishes (unchanged) weights twice in the middle of a rollout, then asks for the same samples in peace."""

import json
import sys
from pathlib import Path

import torch
from trainshed import Sample, connect
from transformers import AutoModelForCausalLM

PROMPTS = [[4 + index, 5] for index in range(8)]
LONG = {"max_new_tokens": 300, "ignore_eos": True, "sampling_seed": 7}

pipeline = connect()
torch.set_num_threads(1)
with pipeline.lease("init"):
    model = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32)


def told(samples: list[Sample]) -> list[dict[str, object]]:
    return [
        {"ids": sample.output_ids, "logprobs": sample.logprobs, "versions": [[s.version, s.start, s.end] for s in sample.spans]}
        for sample in samples
    ]


with pipeline.rollout(target=10) as rollout:
    long = rollout.start(PROMPTS, **LONG)
    # A new version makes the engine feed what is known again, token by token: the second part must be longer than that,
    # and the samples so long that a slow publish does not outlast them.
    for part, tokens in ((1, 4), (2, 100)):
        rollout.generate([[4, 6, part]], max_new_tokens=tokens, ignore_eos=True, expected_tokens=1000)
        pipeline.publish(model.state_dict)
    disturbed = rollout.samples(long)
with pipeline.rollout(target=8) as rollout:
    calm = rollout.generate(PROMPTS, session="calm", **LONG)
Path(sys.argv[1]).write_text(json.dumps({"disturbed": told(disturbed), "calm": told(calm)}))
