"""A real run of two ranks: samples that are named by keys are the same whatever the order, and each rank gets its own where it asks for its own."""

import json
import sys
from pathlib import Path

from tests.harness.supervised_run import CHECKOUT, Run

FILE = """
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
model = {{ make = "trainers.grpo.tiny:make", options = {{ task = "parity", seed = 1, context = 512 }} }}
gpus = [0, 1]
slots = 4
context = 512
[pipeline.trainer]
gpus = [0, 1]
command = ["{python}", "-P", "{script}", "{result}"]
"""


def test_keys_ranks_and_choices_in_a_real_run(tmp_path: Path) -> None:
    result = tmp_path / "result"
    file = tmp_path / "run.toml"
    file.write_text(FILE.format(python=sys.executable, script=CHECKOUT / "tests" / "harness" / "agent_trainer.py", result=result))
    run = Run(tmp_path, file)
    try:
        assert run.end(90.0) == 0, run.tail()
    finally:
        run.stop()
    first, second = (json.loads(result.with_suffix(f".{rank}").read_text()) for rank in range(2))
    assert len(set(first["games"] + second["games"])) == 1, "threads, pauses and ranks change nothing"
    for name in ("own", "keyed"):
        assert len(set(first[name])) == len(set(second[name])) == 1
        assert first[name] != second[name], "equal prompts of two ranks are samples of their own"
    assert second["apart"] == "ranks_ask_apart"
    assert len(first["first"]["taken"]) == 4
    assert first["first"]["taken"] == second["first"]["taken"], "chosen once, for all ranks"
    assert not set(first["first"]["taken"]) & set(first["first"]["aborted"])
    assert first["first"]["aborted"], "the rest is ended, and what there is of it is kept"
    assert {"cached_tokens", "prompt_tokens"} <= set(first["first"]["said"])
    assert first["evaluation"] == second["evaluation"]
    assert [number for number, _ in first["evaluation"]] == [5000, 5001]
    assert len({made for _, made in first["evaluation"]}) == 2
    assert not run.left_behind()
