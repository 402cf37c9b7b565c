"""A trainer for the tests: publishes what no engine can use in every way there is, then a part of the weights, and says what became of each."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from trainshed import PublishFailed, Sample, connect
from transformers import AutoModelForCausalLM

PROMPTS = [[4 + index, 5, 6] for index in range(8)]
pipeline = connect()
torch.set_num_threads(1)
with pipeline.lease("init"):
    model = AutoModelForCausalLM.from_pretrained(pipeline.model, dtype=torch.float32)
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"

BAD = {
    "names": {f"decoder.{name}": tensor for name, tensor in state.items()},
    "padded": state | {EMBEDDING: torch.zeros(state[EMBEDDING].shape[0] + 64, state[EMBEDDING].shape[1])},
    "quantised": {name: tensor.to(torch.int8) for name, tensor in state.items()},
    "part": {name: tensor for name, tensor in state.items() if "mlp" in name},
    "nan": {name: tensor * float("nan") for name, tensor in state.items()},
    "infinite": state | {NORM: state[NORM] + torch.tensor([float("inf")])},
    "adapter": {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    | {"base_model.model.model.lora_A.weight": torch.ones(1)},
}


def generated() -> list[Sample]:
    with pipeline.rollout(target=len(PROMPTS)) as rollout:
        return rollout.generate(PROMPTS, max_new_tokens=16, ignore_eos=True)


def versions(samples: list[Sample]) -> list[int]:
    return sorted({span.version for sample in samples for span in sample.spans})


def off(samples: list[Sample]) -> float:
    """By how much the engine's log-probs differ from the trainer's at most."""
    worst = 0.0
    for sample in samples:
        tokens = torch.tensor([sample.prompt_ids + sample.output_ids])
        with torch.no_grad():
            logprobs = model(tokens).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        ours = logprobs.gather(1, torch.tensor(sample.output_ids)[:, None])[:, 0]
        worst = max(worst, float((ours - torch.tensor(sample.logprobs)).abs().max()))
    return worst


def unreadable() -> str:
    """What becomes of a snapshot with a file whose name is no text, which our own client never writes."""
    folder = pipeline._weights / "snap"
    folder.mkdir()
    (folder / "\udcff\udcfe.safetensors").write_bytes(b"x")
    call = pipeline._next_number("publish")
    pipeline._channel.send("publish", call=call, name="snap")
    return str(pipeline._channel.wait("publish", call)["code"])


first = generated()
made: dict[str, Any] = {"versions": [versions(first)], "off": [off(first)], "codes": {}}
for kind, weights in BAD.items():
    try:
        pipeline.publish(weights)
    except PublishFailed as error:
        made["codes"][kind] = error.code
made["codes"]["unreadable"] = unreadable()
again = generated()
made["versions"].append(versions(again))
made["off"].append(off(again))
with torch.no_grad():
    for parameter in (parameter for name, parameter in model.named_parameters() if "mlp" in name):
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.05)
pipeline.publish({f"module.{name}": tensor for name, tensor in model.state_dict().items() if "mlp" in name}, partial=True)
last = generated()
made["versions"].append(versions(last))
made["off"].append(off(last))
Path(sys.argv[1]).write_text(json.dumps(made))
