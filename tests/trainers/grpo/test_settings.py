from typing import Any

import pytest

from trainers.grpo.settings import Settings


def test_defaults_and_overrides() -> None:
    assert Settings.read({}).prompts * Settings.read({}).group == 256
    assert Settings.read({"lr": 1, "task": "class", "group": 8}) == Settings(lr=1.0, task="class", group=8)


@pytest.mark.parametrize(
    "options",
    [{"no": 1}, {"lr": "1"}, {"group": 1.5}, {"group": True}, {"task": "x"}, {"epochs": 0}, {"lr": 0.0}, {"temperature": float("nan")}],
)
def test_mistakes_name_the_key(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"options\.{next(iter(options))}"):
        Settings.read(options)
