"""A trainer for the tests of engines: standard library, no model. It rolls out, checks every token, publishes, and goes on.

`options`: `target` samples of `tokens` tokens a rollout; `train = false` leaves the lease and the publishing out. What it got it appends
to `samples.jsonl` in its directory, one line a rollout; a wrong, lost or doubled sample ends it with exit code 3. On a scripted box
(`gpu_box.py`) it trains in device memory; `touch = true` makes its context before the first lease, as an import of some libraries does.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from faulty_engine import expected
from gpu_allocations import TrainerMemory
from trainshed import connect, sample_seed


class Weights:
    """As much of a torch tensor as publishing needs."""

    dtype = "torch.float32"
    shape = (1,)

    def __init__(self, value):
        self.buffer = ctypes.c_float(value)

    def element_size(self):
        return 4

    def numel(self):
        return 1

    def stride(self):
        return (1,)

    def data_ptr(self):
        return ctypes.addressof(self.buffer)

    def detach(self):
        return self

    def to(self, device):
        return self

    contiguous = detach

    def reshape(self, *shape):
        return self


def main():
    pipeline = connect()
    target, tokens = int(pipeline.options.get("target", 16)), int(pipeline.options.get("tokens", 8))
    train = bool(pipeline.options.get("train", True))
    device = TrainerMemory(os.environ["SCRIPTED_BOX"], os.environ) if "SCRIPTED_BOX" in os.environ else None
    if device is not None and pipeline.options.get("touch", False):
        device.touch()
    pipeline.restore(lambda: {"w": Weights(0.0)})
    record = open(pipeline.directory / "samples.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - as long as the process lives
    for step in range(pipeline.steps_done, pipeline.steps):
        prompts = [[4 + index % 50, 5, 6] for index in range(target)]
        with pipeline.rollout(target=target) as rollout:
            samples = rollout.generate(prompts, max_new_tokens=tokens)
        for index, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
            right = expected(prompt, sample_seed(pipeline.seed, step, index), tokens)
            if sample.index != index or sample.output_ids != right or len(sample.logprobs) != tokens:
                sys.stderr.write(f"sample {index} of rollout {step}: {sample}, expected {right}\n")
                sys.exit(3)
        spans = [(span.engine, span.incarnation, span.version) for sample in samples for span in sample.spans]
        record.write(json.dumps({"step": step, "samples": len(samples), "spans": sorted(set(spans))}) + "\n")
        record.flush()
        if train:
            with pipeline.lease("train"):
                if device is not None:
                    device.onload()
                time.sleep(float(pipeline.options.get("training", 0.0)))
                pipeline.publish({"w": Weights(float(step))})
                if device is not None:
                    device.offload()
        pipeline.report(step, reward=1.0)
        saved = pipeline.directory / f"step-{step}"
        saved.write_text("as much of a state as there is\n", encoding="utf-8")
        pipeline.checkpoint(step, saved)


if __name__ == "__main__":
    main()
