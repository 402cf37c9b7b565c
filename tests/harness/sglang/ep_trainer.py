"""A trainer for groups of real SGLang: greedy rollouts, checked against each other, and new weights after each.

`options`: `first`, `other` (model folders, published in turn), `target` samples of `tokens` tokens. Of each prompt under each weights the
first answer is the reference; a later one that differs was harmed by what happened meanwhile. What it got it appends to `samples.jsonl`.
A sample that is missing, doubled or short ends it with exit code 3.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file
from trainshed import connect


def main() -> None:
    pipeline = connect()
    target, tokens = int(pipeline.options["target"]), int(pipeline.options["tokens"])
    weights = [load_file(Path(str(pipeline.options[name])) / "model.safetensors") for name in ("first", "other")]
    references: dict[tuple[int, int], list[int]] = {}
    pipeline.restore(lambda: weights[0])
    with open(pipeline.directory / "samples.jsonl", "a", encoding="utf-8") as record:
        for step in range(pipeline.steps_done, pipeline.steps):
            prompts = [[4 + index, 9, 5 + index % 7] for index in range(target)]
            with pipeline.rollout(target=target) as rollout:
                samples = rollout.generate(prompts, max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
            if [sample.index for sample in samples] != list(range(target)) or any(len(sample.output_ids) != tokens for sample in samples):
                sys.exit(3)
            different = [
                sample.index
                for sample in samples
                if references.setdefault((step % 2, sample.index), sample.output_ids) != sample.output_ids
            ]
            spans = sorted({(span.engine, span.incarnation, span.version) for sample in samples for span in sample.spans})
            record.write(json.dumps({"step": step, "samples": len(samples), "different": different, "spans": spans}) + "\n")
            record.flush()
            pipeline.publish(weights[(step + 1) % 2])
            pipeline.report(step, reward=1.0)
            saved = pipeline.directory / f"step-{step}"
            saved.write_text("as much of a state as there is\n", encoding="utf-8")
            pipeline.checkpoint(step, saved)


if __name__ == "__main__":
    main()
