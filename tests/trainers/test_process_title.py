"""How processes are called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.process_title import short_name
from trainers.protocol.child_env import CLIENT


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("p1/engine/0", "p1/engine/0"),
        ("p1/gateway", "p1/gateway"),
        ("a-very-long-name/engine/12", "a-ver/engine/12"),
        ("prewarm", ""),
        ("", ""),
    ],
)
def test_names_that_tell_apart(group: str, name: str) -> None:
    assert short_name({"TRAINSHED_TAG": f"quickstart-0a1b:{group}:3"}) == name
    assert len(name) <= 15


def test_nobody_is_named_without_a_tag() -> None:
    assert short_name({"RANK": "0"}) == ""


@pytest.mark.parametrize(
    ("pipeline", "arguments", "name"),
    [
        ("p1", ["faulty:comm"], "p1/trainer/1"),
        ("a-very-long-name", ["faulty:comm"], "a-ver/trainer/1"),
        ("p1", ["--make", "faulty:comm", "{tmp}/model", "{}"], "p1/model"),
    ],
)
def test_a_rank_and_a_recipe_are_called_so_while_they_run(tmp_path: Path, pipeline: str, arguments: list[str], name: str) -> None:
    (tmp_path / "faulty.py").write_text("def comm(*_):\n    print(open('/proc/self/comm').read().strip())\n")
    env = {**os.environ, "PYTHONPATH": f"{CLIENT}:{tmp_path}", "TRAINSHED_TAG": f"r:{pipeline}/trainer:1", "RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainshed.launch", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)],
        env=env, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == name
